"""What the handlers of the matrix do until their connection ends, and how some of them end it themselves."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from itertools import count

import anyio
from fastapi import WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from outlive_conformance.matrix import End, Handler

TICK = 0.05
"""Seconds between two messages of a handler that goes on sending."""
SOON = 0.4
"""After so many seconds a handler that ends by itself begins to end."""
REQUEST_SECONDS = 1.5
LONG_REQUEST_SECONDS = 4.0
"""How long a plain request takes to be answered; the long one leaves a busy machine time to find the client gone."""
MUCH, MANY = "x" * 65_536, 64
"""A message, and a number of them, that fill the buffers of a client that doesn't read: some servers have no bound."""

Finish = Callable[[], Awaitable[None]]
"""The clean-up: the work, done in the cell's way."""


class HandlerError(Exception):
    """What a handler raises where the cell says so."""


class ClosingStream(StreamingResponse):
    """A stream that closes its generator, however it ends, so that it is the generator's clean-up that is tested.

    Starlette leaves one that was cut short to the garbage collector.
    """

    def __init__(self, pieces: AsyncGenerator[str], end: End, media_type: str) -> None:
        super().__init__(pieces, media_type=media_type)
        self._pieces = pieces
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with provoked(self._end):
            async with aclosing(self._pieces):
                await super().__call__(scope, receive, send)


@contextmanager
def provoked(end: End) -> Iterator[None]:
    """Cancel the block soon, if that is the cell's end."""
    loop = asyncio.get_running_loop()
    if end is End.ANYIO_CANCEL:
        with anyio.CancelScope() as scope:
            loop.call_later(SOON, scope.cancel)
            yield
    elif end is End.NATIVE_CANCEL:
        task = asyncio.current_task()
        assert task is not None
        cancelling = loop.call_later(SOON, task.cancel)
        try:
            yield
        finally:
            cancelling.cancel()
    else:
        yield


async def messages(end: End) -> AsyncIterator[str]:
    """What a handler sends on, until it raises or returns where the cell says so."""
    loop = asyncio.get_running_loop()
    soon = loop.time() + SOON
    for number in count():
        filling = end is End.STOPS_READING and number < MANY
        yield MUCH if filling else "tick\n"
        await asyncio.sleep(TICK / 10 if filling else TICK)
        if loop.time() > soon and ended(end):
            return


def ended(end: End) -> bool:
    """Whether a handler that could end by itself now returns.

    Raises:
        HandlerError: it raises instead.
    """
    if end is End.RAISES:
        raise HandlerError
    return end is End.RETURNS


async def receives(websocket: WebSocket, end: End, finish: Finish) -> None:
    """A WebSocket handler that receives."""
    try:
        async for _ in websocket.iter_text():
            if ended(end):
                return
    finally:
        await finish()


async def sends(websocket: WebSocket, end: End, finish: Finish) -> None:
    """A WebSocket handler that only sends."""
    try:
        async for message in messages(end):
            await websocket.send_text(message)
    except WebSocketDisconnect:
        pass
    finally:
        await finish()


async def does_both(websocket: WebSocket, end: End, finish: Finish) -> None:
    """A WebSocket handler that receives and sends in a task group, whichever ends first ending the other."""

    async def send_on() -> None:
        try:
            async for message in messages(end):
                await websocket.send_text(message)
        except WebSocketDisconnect:
            pass
        finally:
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(send_on)
        try:
            async for _ in websocket.iter_text():
                pass
            group.cancel_scope.cancel()
        finally:
            await finish()


TALKING = {Handler.RECEIVES: receives, Handler.SENDS: sends, Handler.BOTH: does_both}


async def pieces(end: End, enter: Callable[[], None], finish: Finish) -> AsyncGenerator[str]:
    """The body of a streamed response, which is entered with its first piece: before it, there is nothing to clean up."""
    try:
        enter()
        async for message in messages(end):
            yield f"data: {message}\n"
    finally:
        await finish()


async def answer(end: End) -> str:
    """What a plain request waits for."""
    seconds = LONG_REQUEST_SECONDS if end is End.ABORT else REQUEST_SECONDS
    await asyncio.sleep(SOON * 1.5 if end.is_the_handlers else seconds)
    ended(end)
    return "done"
