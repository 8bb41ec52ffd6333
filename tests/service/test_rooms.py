import asyncio
import gc
import json
import socket
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from outlive_service.rooms import Room

pytestmark = pytest.mark.anyio


def address(service: Any, user: str, room: str = "lobby") -> str:
    return f"{service.url.replace('http', 'ws')}/rooms/{quote(room)}?user={quote(user)}"


async def receive(client: ClientConnection, kind: str) -> dict[str, Any]:
    """The next message, which is of this kind."""
    async with asyncio.timeout(10):
        message: dict[str, Any] = json.loads(await client.recv())
    assert message["type"] == kind, message
    return message


async def say(client: ClientConnection, *lines: str) -> list[dict[str, Any]]:
    """Say lines, and wait for their echo."""
    for line in lines:
        await client.send(line)
    return [await receive(client, "line") for _ in lines]


async def close_code(client: ClientConnection) -> int:
    """Read to the end, and tell the code of the close frame."""
    try:
        while True:
            await asyncio.wait_for(client.recv(), 10)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 1006


async def test_what_one_says_everybody_hears(service: Any) -> None:
    service.start()
    async with connect(address(service, "ann")) as ann:
        welcome = await receive(ann, "welcome")
        assert welcome["present"] == ["ann"]
        async with connect(address(service, "bob")) as bob:
            assert (await receive(bob, "welcome"))["present"] == ["ann", "bob"]
            assert await receive(ann, "joined") == {"type": "joined", "user": "bob"}
            said = await say(ann, "one", "zwei \u2026")
            assert said == [await receive(bob, "line"), await receive(bob, "line")]
            assert said[1] == {
                "type": "line",
                "session": welcome["session"],
                "user": "ann",
                "n": 1,
                "text": "zwei \u2026",
            }
            async with connect(address(service, "cid", "elsewhere")) as cid:
                assert (await receive(cid, "welcome"))["present"] == ["cid"]
        assert await receive(ann, "left") == {"type": "left", "user": "bob"}


@pytest.mark.parametrize("politely", [True, False])
async def test_after_a_disconnect_all_three_runs_do_their_work(service: Any, politely: bool) -> None:
    service.start()
    ann = await connect(address(service, "ann"))
    session = (await receive(ann, "welcome"))["session"]
    await say(ann, "one", "two", "three")
    if politely:
        await ann.close()
    else:
        ann.transport.abort()
        await ann.wait_closed()
    await service.ended(save_transcript=1, notify_partner=1, announce_departure=1)
    (saved,) = await service.store.sessions()
    assert (saved.id, saved.room, saved.user, saved.lines) == (session, "lobby", "ann", 3)
    assert (await service.records())["notices"] == [{"key": session, "fault": None}]
    for task in ("save_transcript", "notify_partner", "announce_departure"):
        assert service.runs(task) == {"completed": 1}


async def test_nobody_is_told_of_a_user_who_comes_back_in_time(service: Any) -> None:
    # So long that the test can't be late; a short drain then doesn't wait for it.
    service.start(departure_grace=30, drain_timeout=1, cancel_grace=0.1)
    async with connect(address(service, "ann")) as ann:
        await receive(ann, "welcome")
        async with connect(address(service, "bob")) as bob:
            await receive(bob, "welcome")
            await receive(ann, "joined")
        await service.ended(save_transcript=1)
        async with connect(address(service, "cid")) as cid:
            assert (await receive(cid, "welcome"))["present"] == ["ann", "bob", "cid"]
            await receive(ann, "joined")
            async with connect(address(service, "bob")) as bob:
                assert (await receive(bob, "welcome"))["present"] == ["ann", "bob", "cid"]
                await service.ended(announce_departure=1)
                assert service.runs("announce_departure") == {"cancelled": 1}
                # Had the others been told, they would have been before this line.
                (line,) = await say(ann, "here")
                assert await receive(cid, "line") == line


async def test_the_time_in_line_counts_for_a_departure(service: Any) -> None:
    service.start(departure_grace=1.0, departures_max_running=1)
    for user in ("ann", "bob", "cid", "dan"):
        async with connect(address(service, user, user)) as ws:
            await receive(ws, "welcome")
    await service.ended(announce_departure=4)
    assert service.runs("announce_departure") == {"completed": 4}
    labels = {"task": "announce_departure", "outcome": "completed"}
    executing = service.registry.get_sample_value("outlive_run_duration_seconds_sum", labels)
    # Those behind the first found that their time had come; before, each had slept for a second of its own.
    assert executing < 2.5


async def test_a_user_with_two_windows_leaves_with_the_last(service: Any) -> None:
    service.start(departure_grace=0)
    async with connect(address(service, "ann")) as ann:
        await receive(ann, "welcome")
        async with connect(address(service, "bob")) as bob:
            await receive(bob, "welcome")
            await receive(ann, "joined")
            async with connect(address(service, "bob")) as second:
                await receive(second, "welcome")
            await service.ended(save_transcript=1, notify_partner=1)
            assert service.runs("announce_departure") == {}
            # Nothing was told of the second window.
            (line,) = await say(ann, "here")
            assert await receive(bob, "line") == line
        assert await receive(ann, "left") == {"type": "left", "user": "bob"}


async def test_a_departure_that_finds_no_room_among_the_runs_is_told_at_once(service: Any) -> None:
    # One run at a time, and none may wait.
    service.start(departure_grace=30, drain_timeout=1, cancel_grace=0.1, max_running=1, max_pending=0)
    async with connect(address(service, "ann")) as ann:
        await receive(ann, "welcome")
        async with connect(address(service, "bob")) as bob:
            await receive(bob, "welcome")
            await receive(ann, "joined")
        await receive(ann, "left")
        assert service.runs("announce_departure") == {"rejected": 1}


async def test_a_slow_reader_is_closed_and_holds_up_nobody(service: Any) -> None:
    service.start(room_queue=8, room_max_lines=5_000)
    parts = urlsplit(service.url)
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    narrow.connect((parts.hostname, parts.port))
    async with (
        connect(address(service, "ann"), compression=None) as ann,
        connect(address(service, "bob"), compression=None, sock=narrow, max_queue=1) as bob,
    ):
        await receive(ann, "welcome")
        await receive(ann, "joined")
        # Twelve kilobytes each, as JSON writes them: more than all buffers of the system between here and bob.
        for _ in range(100):
            await say(ann, *["\u2026" * 2_000] * 6)
        # He reads on, and is told why.
        assert await close_code(bob) == 1013
    await service.ended(save_transcript=2, notify_partner=2)
    assert sorted((saved.user, saved.lines) for saved in await service.store.sessions()) == [
        ("ann", 600),
        ("bob", 0),
    ]


async def test_a_fast_talker_drives_out_nobody_who_reads(service: Any) -> None:
    service.start(room_queue=8)
    async with connect(address(service, "ann")) as ann, connect(address(service, "bob")) as bob:
        await receive(ann, "welcome")
        await receive(ann, "joined")
        await receive(bob, "welcome")
        async with asyncio.TaskGroup() as group:
            heard = [group.create_task(listen(client, 500)) for client in (ann, bob)]
            for n in range(500):
                await ann.send(str(n))
        for lines in heard:
            assert [line["text"] for line in lines.result()] == [str(n) for n in range(500)]


async def listen(client: ClientConnection, count: int) -> list[dict[str, Any]]:
    return [await receive(client, "line") for _ in range(count)]


@pytest.mark.parametrize(("room", "user"), [("lobby", ""), ("lobby", "x" * 65), ("x" * 65, "ann")])
async def test_names_out_of_bounds_are_refused(service: Any, room: str, user: str) -> None:
    service.start()
    with pytest.raises(InvalidStatus) as refusal:
        await connect(address(service, user, room))
    assert refusal.value.response.status_code == 403
    await service.stop()
    assert await service.store.sessions() == []
    assert service.runs("save_transcript") == {}


@pytest.mark.parametrize(
    ("sent", "code", "lines"),
    [("x" * 2_001, 1009, 2), (b"bytes", 1003, 2), ("x" * 2_000, 1008, 3)],
    ids=["long", "binary", "many"],
)
async def test_what_is_no_line_ends_the_session_and_what_was_said_is_saved(
    service: Any, sent: str | bytes, code: int, lines: int
) -> None:
    service.start(room_max_lines=3)
    async with connect(address(service, "ann")) as ann:
        await receive(ann, "welcome")
        await say(ann, "one", "two")
        for _ in range(2):
            await ann.send(sent)
        assert await close_code(ann) == code
    await service.ended(save_transcript=1)
    assert [saved.lines for saved in await service.store.sessions()] == [lines]


async def test_a_full_room_says_so(service: Any) -> None:
    service.start(room_max_members=1)
    async with connect(address(service, "ann")) as ann:
        await receive(ann, "welcome")
        async with connect(address(service, "bob")) as bob:
            assert await close_code(bob) == 1013
    await service.ended(save_transcript=1)
    assert [saved.user for saved in await service.store.sessions()] == ["ann"]


async def test_a_stop_saves_what_is_being_said(service: Any) -> None:
    service.start()
    clients = [await connect(address(service, user)) for user in ("ann", "bob", "cid")]
    for client in clients:
        await receive(client, "welcome")
        await client.send("one")
    await listen_for(clients[0], "line", 3)
    await service.stop()
    assert [saved.lines for saved in await service.store.sessions()] == [1, 1, 1]
    assert len((await service.records())["notices"]) == 3
    assert service.runs("save_transcript") == {"completed": 3}
    for client in clients:
        await client.close()


async def listen_for(client: ClientConnection, kind: str, count: int) -> None:
    """Read on until so many messages of a kind have come."""
    async with asyncio.timeout(10):
        while count:
            count -= json.loads(await client.recv())["type"] == kind


async def test_a_dead_partner_costs_no_transcript(service: Any) -> None:
    await service.faults(notices={"hang_rate": 1})
    service.start(notify_timeout=2)
    async with connect(address(service, "ann")) as ann:
        await say_after_welcome(ann)
    await service.ended(notify_partner=1, save_transcript=1)
    await service.faults(notices={"error_rate": 1})
    async with connect(address(service, "ann")) as ann:
        await say_after_welcome(ann)
    await service.ended(notify_partner=2, save_transcript=2)
    assert service.runs("notify_partner") == {"timed_out": 1, "failed": 1}
    assert service.runs("save_transcript") == {"completed": 2}
    assert [saved.lines for saved in await service.store.sessions()] == [1, 1]
    assert [notice["fault"] for notice in (await service.records())["notices"]] == ["hang", "error"]


async def say_after_welcome(client: ClientConnection) -> None:
    await receive(client, "welcome")
    await say(client, "here")


async def test_an_empty_room_is_forgotten(service: Any) -> None:
    service.start()
    for n in range(3):
        async with connect(address(service, "ann", f"room {n}")) as ann:
            await say_after_welcome(ann)

    async def forgotten() -> bool:
        gc.collect()
        return not any(isinstance(found, Room) for found in gc.get_objects())

    await service.ended(announce_departure=3)
    await service.until(forgotten)
