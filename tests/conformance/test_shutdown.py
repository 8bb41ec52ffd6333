"""A real server is stopped while handlers clean up: what they submit is done."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

WEBSOCKETS = ("websockets", "websockets-sansio", "wsproto")
GRACE = {"no graceful timeout": [], "a graceful timeout": ["--timeout-graceful-shutdown", "1"]}


class Server:
    def __init__(self, port: int, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.port = port
        self._process = process
        self._folder = folder

    async def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    async def account(self) -> dict[str, Any]:
        async with asyncio.timeout(20):
            await self._process.wait()
        counts: dict[str, Any] = json.loads((self._folder / "counts").read_text())
        assert counts["submitted"] == sum(counts["outcomes"].values())
        return counts

    @property
    def saved(self) -> list[str]:
        file = self._folder / "saved"
        return sorted(file.read_text().split()) if file.exists() else []


@asynccontextmanager
async def uvicorn(folder: Path, *options: str) -> AsyncIterator[Server]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        port = listener.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "uvicorn", "application:app", "--fd", str(listener.fileno()), *options,
            cwd=Path(__file__).parent,
            env={**os.environ, "SAVED": str(folder / "saved"), "COUNTS": str(folder / "counts")},
            pass_fds=[listener.fileno()],
            stderr=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield Server(port, process, folder)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def read_stream(url: str, there: asyncio.Event) -> None:
    async with httpx.AsyncClient(timeout=30) as client:
        with suppress(httpx.RemoteProtocolError):
            async with client.stream("GET", url) as answer:
                async for _ in answer.aiter_bytes():
                    there.set()


async def stay_in_room(url: str, there: asyncio.Event) -> None:
    with suppress(ConnectionClosed):
        async with connect(url) as ws:
            await ws.send("hello")
            async for _ in ws:
                there.set()


Visit = Callable[[str, asyncio.Event], Awaitable[None]]


async def visitors(visits: dict[str, Visit]) -> list[asyncio.Task[None]]:
    """Start the visits and wait until each has got something."""
    events = [asyncio.Event() for _ in visits]
    tasks = [
        asyncio.ensure_future(visit(url, event))
        for (url, visit), event in zip(visits.items(), events, strict=True)
    ]
    async with asyncio.timeout(20):
        await asyncio.gather(*(event.wait() for event in events))
    return tasks


@pytest.mark.parametrize("grace", GRACE)
@pytest.mark.parametrize("ws", WEBSOCKETS)
def test_a_stop_in_mid_stream_loses_nothing(ws: str, grace: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with uvicorn(tmp_path, "--ws", ws, *GRACE[grace]) as server:
            http, socket_ = f"http://127.0.0.1:{server.port}", f"ws://127.0.0.1:{server.port}"
            # Without a graceful timeout the server waits for the streams, so they have to end.
            seconds = 2 if grace == "no graceful timeout" else 60
            tasks = await visitors(
                {
                    f"{http}/stream/one?seconds={seconds}": read_stream,
                    f"{http}/stream/two?seconds={seconds}": read_stream,
                    f"{socket_}/websocket/three": stay_in_room,
                    f"{socket_}/awaits/four": stay_in_room,
                }
            )
            await server.stop()
            await asyncio.gather(*tasks)
            account = await server.account()
            assert server.saved == ["four", "one", "three", "two"]
            assert account["outcomes"]["completed"] == account["submitted"] == 4
            assert account["others"] == ["Task-1"]  # the server itself
            stopped = ["/awaits/{what} server_shutdown", "/websocket/{what} server_shutdown"]
            if grace == "a graceful timeout":
                stopped += ["/stream/{what} server_shutdown"] * 2
            assert sorted(account["causes"]) == sorted(stopped)

    asyncio.run(main())


def test_what_a_cancelled_handler_submits_after_the_lifespan_began_to_end_is_done(tmp_path: Path) -> None:
    async def main() -> None:
        async with uvicorn(tmp_path, *GRACE["a graceful timeout"]) as server:
            tasks = await visitors({f"http://127.0.0.1:{server.port}/slow-clean-up/late": read_stream})
            await server.stop()
            await asyncio.gather(*tasks)
            account = await server.account()
            assert server.saved == ["late"]
            assert account["outcomes"]["completed"] == 1

    asyncio.run(main())


def test_a_client_that_leaves_just_before_the_stop_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with uvicorn(tmp_path, *GRACE["a graceful timeout"]) as server:
            async with connect(f"ws://127.0.0.1:{server.port}/awaits/websocket") as ws:
                await ws.send("hello")
                await ws.recv()
            async with (
                httpx.AsyncClient() as client,
                client.stream("GET", f"http://127.0.0.1:{server.port}/stream/stream?seconds=60") as answer,
            ):
                await anext(answer.aiter_bytes())
            await server.stop()
            account = await server.account()
            assert server.saved == ["stream", "websocket"]
            assert account["outcomes"]["completed"] == 2

    asyncio.run(main())
