"""Clients that connect over real sockets, and vanish as their cell says."""

import asyncio
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from outlive_conformance.matrix import Cell, End

PATIENCE = 60.0
"""Seconds to wait for a server that is busy."""
FULL_AFTER = 1.5
"""Seconds without reading after which the buffers between a handler that goes on sending and its client are full."""
SMALL_BUFFER = 4_096
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Client(ABC):
    """One client.

    Parameters:
        cell: what it is for.
        key: what the work after its disconnect is known by.
        port: the server's, on this machine.
        entered: tells whether a handler has a key.
    """

    def __init__(self, cell: Cell, key: str, port: int, entered: Callable[[str], bool]) -> None:
        self.cell = cell
        self.key = key
        self.there = asyncio.Event()
        # On the clock that all processes of a machine share.
        self.left_at: float | None = None
        self.path = f"/{cell.task}/{key}"
        self._port = port
        self._entered = entered

    async def visit(self, leave: asyncio.Event) -> None:
        """Connect, and go when told to; what has to stay stays until this is cancelled."""
        sock = socket.socket()
        sock.setblocking(False)
        if self.cell.end is End.STOPS_READING:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
                transport, ended = await self.open(sock)
                while not self._entered(self.key):  # noqa: ASYNC110 - another process's doing
                    await asyncio.sleep(0.05)
            if self.cell.end is End.STOPS_READING:
                transport.pause_reading()
            self.there.set()
            # A server that stops may end it before.
            either: list[asyncio.Future[Any]] = [asyncio.create_task(leave.wait()), ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._leave(transport)
            await ended
        finally:
            if transport is None:
                sock.close()
            else:
                transport.abort()

    async def _leave(self, transport: asyncio.Transport) -> None:
        end = self.cell.end
        if end.is_the_handlers:
            await self.speak()
        elif end is not End.STOP_BEFORE_GRACE:
            if end is End.STOPS_READING:
                await asyncio.sleep(FULL_AFTER)
            self.left_at = asyncio.get_running_loop().time()
            if end is End.CLOSE_FRAME:
                await self.close()
            elif end is End.HALF_OPEN:
                transport.pause_reading()
            else:
                transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE
                )
                transport.abort()

    @abstractmethod
    async def open(self, sock: socket.socket) -> tuple[asyncio.Transport, asyncio.Future[None]]:
        """Ask. Gives the transport, and what ends with the connection."""

    @abstractmethod
    async def speak(self) -> None:
        """Say something to a handler that may wait for it."""

    @abstractmethod
    async def close(self) -> None:
        """Leave in order."""


class WebSocketClient(Client):
    """A client that talks."""

    _websocket: ClientConnection

    async def open(self, sock: socket.socket) -> tuple[asyncio.Transport, asyncio.Future[None]]:
        """Shake hands."""
        self._websocket = await connect(
            f"ws://127.0.0.1:{self._port}{self.path}",
            sock=sock,
            # It takes what comes, answers pings, and asks for nothing.
            ping_interval=None,
            max_queue=None,
            compression=None,
            proxy=None,
            open_timeout=PATIENCE,
            close_timeout=PATIENCE,
        )
        return self._websocket.transport, asyncio.ensure_future(self._websocket.wait_closed())

    async def speak(self) -> None:
        """Say something to a handler that waits for it."""
        with suppress(ConnectionClosed):
            await self._websocket.send("now")

    async def close(self) -> None:
        """Send a close frame."""
        await self._websocket.close()


class HTTPClient(Client):
    """A client that asks once, and drops what comes."""

    async def open(self, sock: socket.socket) -> tuple[asyncio.Transport, asyncio.Future[None]]:
        """Send the request."""
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(_Dropping, sock=sock)
        transport.write(f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        return transport, protocol.ended

    async def speak(self) -> None:
        """Say nothing: all was said in the request."""

    async def close(self) -> None:
        """Do nothing: there is no such end."""


class _Dropping(asyncio.Protocol):
    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        if not self.ended.done():
            self.ended.set_result(None)


def client(cell: Cell, key: str, port: int, folder: Path) -> Client:
    """The client for a cell."""
    notes = folder / "entered"

    def entered(key: str) -> bool:
        return notes.exists() and key in notes.read_text().split()

    kind = WebSocketClient if cell.handler.is_websocket else HTTPClient
    return kind(cell, key, port, entered)
