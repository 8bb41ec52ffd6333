"""A client that asks for the next thing as soon as it has the last one, and costs less than any server."""

import asyncio
import os
from collections.abc import Callable
from time import perf_counter
from typing import cast

MESSAGE = b"x" * 64
PATIENCE = 30.0
"""Seconds until a server that doesn't answer fails the benchmark."""
UPGRADE = (
    b"GET /echo HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def frame(text: bytes) -> bytes:
    """A masked text frame of less than 126 bytes (RFC 6455, section 5.2)."""
    mask = os.urandom(4)
    return bytes((0x81, 0x80 | len(text))) + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(text))


def request(path: str) -> bytes:
    """A GET."""
    return f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode()


Complete = Callable[[bytearray], bool]
"""Whether what has come is all that was asked for."""


def one_frame(received: bytearray) -> bool:
    """The echo of the message."""
    return len(received) == len(MESSAGE) + 2


def one_response(received: bytearray) -> bool:
    """A response that tells its length."""
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return False
    _, _, length = head.lower().partition(b"content-length: ")
    return len(body) == int(length.split(b"\r\n", 1)[0])


def one_stream(received: bytearray) -> bool:
    """A response in chunks."""
    return received.endswith(b"0\r\n\r\n")


class Asking(asyncio.Protocol):
    """One connection that asks for the same thing again and again."""

    def __init__(self, asks: bytes, complete: Complete, first: bytes = b"") -> None:
        self._asks = asks
        self._complete = complete
        self._first = first
        self._received = bytearray()
        self._asked = 0.0
        self._going = False
        self._ready = asyncio.get_running_loop().create_future()
        self._idle = asyncio.Event()
        self.seconds: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its class
        if self._first:
            self.transport.write(self._first)
        else:
            self._ready.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._ready.done():
            if self._received.endswith(b"\r\n\r\n"):
                self._received.clear()
                self._ready.set_result(None)
        elif self._complete(self._received):
            self._received.clear()
            self.seconds.append(perf_counter() - self._asked)
            if self._going:
                self._ask()
            else:
                self._idle.set()

    def _ask(self) -> None:
        self._asked = perf_counter()
        self.transport.write(self._asks)

    async def ready(self) -> None:
        """Wait for the handshake, if there is one."""
        async with asyncio.timeout(PATIENCE):
            await self._ready

    def start(self) -> None:
        """Ask from now on."""
        self.seconds.clear()
        self._idle.clear()
        self._going = True
        self._ask()

    async def stop(self) -> None:
        """Ask no more, and wait for the last answer."""
        self._going = False
        async with asyncio.timeout(PATIENCE):
            await self._idle.wait()


KINDS: dict[str, tuple[bytes, Complete, bytes]] = {
    "messages": (frame(MESSAGE), one_frame, UPGRADE),
    "requests": (request("/items/7"), one_response, b""),
    "streams": (request("/stream"), one_stream, b""),
}
"""What is asked for, how its end is told, and what is said first."""


async def connect(kind: str, port: int, number: int) -> list[Asking]:
    """So many connections for that kind."""
    loop = asyncio.get_running_loop()
    connected = []
    for _ in range(number):
        _, asking = await loop.create_connection(lambda: Asking(*KINDS[kind]), "127.0.0.1", port)
        await asking.ready()
        connected.append(asking)
    return connected


async def drive(connected: list[Asking], seconds: float) -> tuple[float, list[float]]:
    """Ask for so long: how many answers a second, and how long each took."""
    began = perf_counter()
    for asking in connected:
        asking.start()
    await asyncio.sleep(seconds)
    await asyncio.gather(*(asking.stop() for asking in connected))
    took = perf_counter() - began
    latencies = [latency for asking in connected for latency in asking.seconds]
    return len(latencies) / took, latencies
