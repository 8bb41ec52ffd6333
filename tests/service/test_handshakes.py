"""Clients that take their time, or say too much, before there is a request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from starlette.responses import StreamingResponse
from websockets.asyncio.client import connect

from outlive_service.handshakes import bounded_requests

pytestmark = pytest.mark.anyio

HEAD = b"POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n"


def application() -> FastAPI:
    app = FastAPI()

    @app.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.get("/slow")
    async def slow() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(12):
                await asyncio.sleep(0.1)
                yield b"x"

        return StreamingResponse(parts())

    @app.websocket("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            await ws.send_text(await ws.receive_text())

    return app


@asynccontextmanager
async def served(timeout: float = 0.5, max_head: int = 2_000) -> AsyncIterator[int]:
    config = uvicorn.Config(
        application(),
        port=0,
        http=bounded_requests(timeout, max_head),
        timeout_keep_alive=60,
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the server ends the connection."""
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize(
    "said",
    [
        b"\r\n",
        b"GET",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: y",
        HEAD + b"\r\nab",
        b"GET /echo HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n",
    ],
)
@pytest.mark.parametrize("before", [b"", HEAD + b"\r\nabcd"])
async def test_half_a_request_is_cut(before: bytes, said: bytes) -> None:
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if before:
            writer.write(before)
            assert (await reader.readuntil(b"\r\n\r\n4")).startswith(b"HTTP/1.1 200")
        writer.write(said)
        assert await rest(reader) == b""
        writer.close()


async def test_a_connection_without_a_word_is_cut() -> None:
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await rest(reader) == b""
        writer.close()


async def test_a_client_that_trickles_gets_no_more_time() -> None:
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def trickle() -> None:
            for byte in HEAD * 100:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        assert await rest(reader) == b""
        trickling.cancel()
        writer.close()


async def test_a_body_that_goes_on_after_the_answer_is_cut() -> None:
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /nowhere HTTP/1.1\r\nhost: a\r\ncontent-length: 400000\r\n\r\n")
        answer = await reader.readuntil(b"}")
        assert answer.startswith(b"HTTP/1.1 404")
        writer.write(b"x")
        assert await rest(reader) == b""
        writer.close()


async def test_a_long_answer_and_a_long_websocket_are_not_cut() -> None:
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with connect(f"ws://127.0.0.1:{port}/echo") as ws:
            writer.write(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
            answer = await reader.readuntil(b"0\r\n\r\n")
            assert answer.count(b"\r\n1\r\nx") == 12
            await ws.send("still here")
            assert await ws.recv() == "still here"
        writer.close()


@pytest.mark.parametrize("size", [1_900, 2_100, 100_000, 1_000_000])
@pytest.mark.parametrize("where", ["target", "one header", "many headers"])
async def test_a_head_has_a_size(where: str, size: int) -> None:
    filler = b"x" * (size - 40)
    target, headers = b"/nowhere", b""
    if where == "target":
        target += b"?" + filler
    elif where == "one header":
        headers = b"x-a: " + filler + b"\r\n"
    else:
        headers = b"x-ab: cd\r\n" * ((size - 40) // 6)
    async with served(timeout=10) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET " + target + b" HTTP/1.1\r\nhost: a\r\n" + headers + b"connection: close\r\n\r\n")
        answer = await rest(reader)
        assert answer[:12] == (b"HTTP/1.1 404" if size < 2_000 else answer[:12])
        # A client that is still writing may see its connection reset instead of the answer.
        assert size < 2_000 or answer[:12] in (b"HTTP/1.1 400", b"")
        writer.close()


async def test_a_large_body_behind_a_small_head_is_none() -> None:
    async with served(timeout=10) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            body = b"x" * 200_000
            head = b"POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
            writer.write(head + body)
            assert (await reader.readuntil(b"200000")).startswith(b"HTTP/1.1 200")
        writer.close()
