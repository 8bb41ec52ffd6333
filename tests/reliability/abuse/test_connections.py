"""Too many connections, slow ones, and those that other sites open."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

pytestmark = pytest.mark.anyio

FULL = 'outlive_connections_rejected_total{reason="full"}'
FOREIGN = 'outlive_connections_rejected_total{reason="origin"}'
HALVES = (
    b"",
    b"G",
    b"GET / HTTP/1.1\r\n",
    b"GET /rooms/lobby?user=ann HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
    b"POST /completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
)


@pytest.mark.reliability("abuse", "500 connections stop in the middle of a request or a handshake")
async def test_slow_handshakes_are_cut(attacked: Any, result: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()

    async def linger(half: bytes) -> float:
        began = loop.time()
        reader, writer = await asyncio.open_connection(target.host, target.port)
        writer.write(half)
        try:
            async with asyncio.timeout(30):
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()
        return loop.time() - began

    async with attacked(REQUEST_TIMEOUT=2) as target:
        lingering = [asyncio.create_task(linger(HALVES[number % len(HALVES)])) for number in range(500)]
        await asyncio.sleep(1)
        assert (await target.look("/readyz")).status_code == 200
        assert (await target.look("/")).status_code == 200
        lasted = await asyncio.gather(*lingering)
        assert min(lasted) > 1.5
    assert target.account["submitted"] == 0
    result(f"all cut, after {max(lasted):.1f} s at most where 2 s are allowed; readiness answered meanwhile")


@pytest.mark.reliability("abuse", "1,000 WebSockets and 500 requests where 100 connections are allowed")
async def test_a_flood_over_the_limit_is_turned_away(attacked: Any, result: Callable[[str], None]) -> None:
    statuses: Counter[int] = Counter()
    retry_after: set[str] = set()

    async def enter(number: int, stack: AsyncExitStack) -> None:
        async with places:
            try:
                ws = await connect(f"ws://{target.address}/rooms/lobby?user=u{number}", max_queue=None)
            except InvalidStatus as refusal:
                statuses[refusal.response.status_code] += 1
                retry_after.add(refusal.response.headers["retry-after"])
            else:
                statuses[101] += 1
                stack.push_async_callback(ws.close)

    async with attacked(MAX_CONNECTIONS=100, ROOM_QUEUE=10_000) as target:
        places = asyncio.Semaphore(50)
        async with AsyncExitStack() as inside:
            await asyncio.gather(*(enter(number, inside) for number in range(1_000)))
            assert statuses == {101: 100, 503: 900}
            assert retry_after == {"5"}
            # Outlive's own pages are no connections.
            for path in ("/readyz", "/healthz", "/metrics"):
                assert (await target.look(path)).status_code == 200
            request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
            answers = await target.say_all([request] * 500)
            assert Counter(answer.status for answer in answers) == {503: 500}
            assert await target.sample(FULL) == 1_400
        async with asyncio.timeout(20):
            while (await target.look("/")).status_code != 200:  # noqa: ASYNC110 - it happens elsewhere
                await asyncio.sleep(0.05)
    assert target.account["submitted"] == 300
    told = [event for event in target.process.events if event["event"] == "connections rejected: full"]
    assert 1 <= len(told) < 10
    result(
        f"100 let in and 1,400 answered 503, with {len(told)} of these told in the log; all 100 sessions saved; readiness answered"
    )


@pytest.mark.reliability("abuse", "300 WebSockets from pages of foreign origins")
async def test_foreign_origins_are_denied(attacked: Any, result: Callable[[str], None]) -> None:
    async with attacked(ALLOWED_ORIGINS="https://chat.example.org") as target:
        origins: tuple[Any, ...] = (
            "https://evil.example", "null", "https://chat.example.org.evil.example", f"https://{target.address}.evil.example",
            f"http://{target.host}:1", "http://chat.example.org",
        )  # fmt: skip
        for number in range(300):
            with pytest.raises(InvalidStatus) as refusal:
                await connect(
                    f"ws://{target.address}/rooms/lobby?user=ann", origin=origins[number % len(origins)]
                )
            assert refusal.value.response.status_code == 403
        assert await target.sample(FOREIGN) == 300
        known: tuple[Any, ...] = (f"http://{target.address}", "https://chat.example.org", None)
        for origin in known:
            async with connect(f"ws://{target.address}/rooms/lobby?user=ann", origin=origin) as ws:
                await ws.recv()
    assert target.account["outcomes"]["completed"] >= 3
    result("300 answered 403 before they were accepted; 3 of known origins let in and saved")
