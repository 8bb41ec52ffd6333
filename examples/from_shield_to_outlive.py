"""One clean-up, four ways to write it, and a table of which of them lost the work.

`python examples/from_shield_to_outlive.py` starts this app under uvicorn, lets clients vanish, stops the server while
the work is under way, and looks at what was really saved. It takes about 10 seconds.
"""

import asyncio
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import anyio
import httpx
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from websockets.asyncio.client import connect

from outlive import Outlive

WORK_SECONDS = 2.0
saved_file = Path("saved.txt")

app = FastAPI()
outlive = Outlive(drain_timeout=10.0)


async def save(what: str) -> None:
    """Stands for the HTTP call and the log line that must happen after the client has gone."""
    await asyncio.sleep(WORK_SECONDS)
    with saved_file.open("a") as file:  # noqa: ASYNC230 - a few bytes, at the end
        file.write(f"{what}\n")


save_task = outlive.task(timeout=5.0)(save)


async def plain_await(what: str) -> None:
    await save(what)


async def anyio_shield(what: str) -> None:
    async with anyio.create_task_group():
        with anyio.CancelScope(shield=True):
            await save(what)


async def asyncio_shield(what: str) -> None:
    try:
        await asyncio.shield(save(what))
    except Exception as error:  # noqa: BLE001 - the recipe's own handler, which no cancellation reaches
        print("failed:", error)


async def with_outlive(what: str) -> None:
    save_task.submit(what)


WAYS: dict[str, Callable[[str], Awaitable[None]]] = {
    "plain-await": plain_await,
    "anyio-shield": anyio_shield,
    "asyncio-shield": asyncio_shield,
    "outlive": with_outlive,
}


@app.websocket("/websocket/{way}/{what}")
async def websocket(ws: WebSocket, way: str, what: str) -> None:
    await ws.accept()
    try:
        while True:
            await ws.receive_text()
    except WebSocketDisconnect:
        await WAYS[way](what)


@app.get("/stream/{way}/{what}")
async def stream(way: str, what: str) -> StreamingResponse:
    async def numbers() -> AsyncIterator[str]:
        try:
            for number in range(1_000):
                yield f"{number}\n"
                await asyncio.sleep(0.05)
        finally:
            await WAYS[way](what)

    return StreamingResponse(numbers())


# What follows plays the clients and the one who stops the server.

Client = Callable[[str, asyncio.Event], Awaitable[None]]


async def leave_websocket(path: str, there: asyncio.Event) -> None:
    async with connect(f"ws{path.removeprefix('http').replace('*', 'websocket')}"):
        there.set()


async def leave_stream(path: str, there: asyncio.Event) -> None:
    async with httpx.AsyncClient() as client, client.stream("GET", path.replace("*", "stream")) as answer:
        await anext(answer.aiter_bytes())
        there.set()


async def stay_on_stream(path: str, there: asyncio.Event) -> None:
    async with httpx.AsyncClient() as client, client.stream("GET", path.replace("*", "stream")) as answer:
        with suppress(httpx.RemoteProtocolError):  # the server ended it
            async for _ in answer.aiter_bytes():
                there.set()


async def try_out(client: Client, ways: list[str], folder: Path, *, stop: bool) -> set[str]:
    """Run a server and a client for each way; tell which ways saved."""
    saved = folder / f"{client.__name__}-{stop}-{ways[0]}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--serve", str(port), str(saved), *ways
    )
    async with httpx.AsyncClient() as http:
        while True:
            with suppress(httpx.TransportError):
                await http.get(f"http://127.0.0.1:{port}/")
                break
            await asyncio.sleep(0.1)
    there = [asyncio.Event() for _ in ways]
    clients = [
        asyncio.ensure_future(client(f"http://127.0.0.1:{port}/*/{way}/{way}", event))
        for way, event in zip(ways, there, strict=True)
    ]
    await asyncio.gather(*(event.wait() for event in there))
    # Long enough for the server to see who left; without a stop, long enough for the work.
    await asyncio.sleep(0.5 if stop else WORK_SECONDS + 1.0)
    server.send_signal(signal.SIGTERM)
    await asyncio.gather(*clients)
    await server.wait()
    return set(saved.read_text().splitlines()) if saved.exists() else set()


async def main() -> None:
    situations: dict[str, tuple[Client, bool]] = {
        "a WebSocket client leaves, the server stays": (leave_websocket, False),
        "a streaming client leaves, the server stays": (leave_stream, False),
        "a WebSocket client leaves, the server is stopped": (leave_websocket, True),
        "a streaming client leaves, the server is stopped": (leave_stream, True),
        "a streaming client stays, the server is stopped": (stay_on_stream, True),
    }
    *recipes, own = WAYS
    with tempfile.TemporaryDirectory() as folder:
        # The recipes run in a process without Outlive, whose drain would wait for their handlers too.
        results = await asyncio.gather(
            *(
                try_out(client, ways, Path(folder), stop=stop)
                for client, stop in situations.values()
                for ways in (recipes, [own])
            )
        )
    print(f"{'':49}" + "".join(f"{way:>15}" for way in WAYS))
    for name, *both in zip(situations, results[::2], results[1::2], strict=True):
        saved = both[0] | both[1]
        print(f"{name:49}" + "".join(f"{'saved' if way in saved else 'LOST':>15}" for way in WAYS))


if __name__ == "__main__":
    if "--serve" in sys.argv:
        _, _, port, file, *served = sys.argv
        saved_file = Path(file)
        if "outlive" in served:
            outlive.install(app)
        # The usual way to bound a deploy: handlers that take longer are cancelled.
        uvicorn.run(app, port=int(port), timeout_graceful_shutdown=1, log_level="critical")
    else:
        asyncio.run(main())
