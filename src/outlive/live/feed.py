"""The live page's feed: one message a tick, made once for all who look, and nothing while nobody does."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context

import anyio
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from outlive.live.stopping import server_waits
from outlive.outcomes import State
from outlive.runner import Runner

logger = logging.getLogger("outlive")

TICK = 1.0
"""Seconds from one message to the next."""
TICK_IN_DRAIN = 0.2
"""The same while the process stops, so that the feed's end holds up nothing."""
WAITING = 5
"""Messages that wait for one viewer; one that doesn't read is dropped."""

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would keep the messages to itself
]


class Viewer:
    """One reader of the feed, and the messages that wait for it."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue(WAITING)
        self.reading = anyio.CancelScope()
        self.last: bytes | None = None

    def tell(self, message: bytes) -> None:
        """Queue a message, or drop the viewer if it doesn't keep up."""
        try:
            self.messages.put_nowait(message)
        except asyncio.QueueFull:
            logger.info("a viewer of the live page that doesn't read was dropped")
            self.reading.cancel()

    def end(self, message: bytes) -> None:
        """Tell a last message, in place of those that wait."""
        self.last = message
        self.reading.cancel()


class Feed:
    """Server-sent events (the HTML standard, "Server-sent events") for up to `most` viewers.

    A viewer gets the event `hello` with all there is, then `state` once a tick, and `end` when the process has
    drained. A server that waits for its connections is never made to wait for a viewer: the feed ends as soon as
    nothing else is left, or at the latest `patience` seconds after the last other connection.

    Parameters:
        runner: what is looked at.
        begin_drain: called when the server is found to stop.
        looked_at: called when somebody looks after nobody did.
        hello: makes the first message for a viewer.
        news: makes the message of a tick: what is new since the last one, or since somebody looks.
        most: viewers at once; more are answered with 503.
        patience: seconds for which a stop may wait for viewers alone.
    """

    def __init__(
        self,
        runner: Runner,
        begin_drain: Callable[[], None],
        looked_at: Callable[[], None],
        hello: Callable[[], Awaitable[bytes]],
        news: Callable[[], Awaitable[bytes]],
        most: int,
        patience: float,
    ) -> None:
        self._runner = runner
        self._begin_drain = begin_drain
        self._looked_at = looked_at
        self._hello = hello
        self._news = news
        self._most = most
        self._patience = patience
        self._viewers: set[Viewer] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._alone_since: float | None = None
        self._held = 0.0

    def opened(self) -> None:
        """The runner accepts runs."""
        self._alone_since = None
        self._held = 0.0

    def hurry(self) -> None:
        """Something has changed that viewers should see now."""
        self._hurry.set()

    @property
    def held(self) -> float:
        """Seconds for which viewers were all that a stopping server waited for."""
        return self._held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            await PlainTextResponse("Method Not Allowed", 405, {"allow": "GET"})(scope, receive, send)
        elif len(self._viewers) >= self._most:
            response = PlainTextResponse("too many viewers", 503, {"retry-after": "5"})
            await response(scope, receive, send)
        else:
            await self._show(receive, send)

    async def _show(self, receive: Receive, send: Send) -> None:
        viewer = Viewer()
        self._viewers.add(viewer)
        try:
            with viewer.reading:
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                async with anyio.create_task_group() as group:
                    group.start_soon(self._end_with_client, receive, viewer)
                    self._tick_for_viewers()
                    await self._send(send, event("hello", await self._hello()))
                    while True:
                        await self._send(send, await viewer.messages.get())
            if viewer.last is not None:
                with anyio.move_on_after(TICK):
                    await self._send(send, viewer.last)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._viewers.discard(viewer)

    @staticmethod
    async def _send(send: Send, message: bytes) -> None:
        await send({"type": "http.response.body", "body": message, "more_body": True})

    @staticmethod
    async def _end_with_client(receive: Receive, viewer: Viewer) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        viewer.reading.cancel()

    def _tick_for_viewers(self) -> None:
        if self._ticking is None or self._ticking.done():
            # Bound to the running event loop, of which there may be several in a process's life.
            self._hurry = asyncio.Event()
            self._looked_at()
            self._ticking = asyncio.get_running_loop().create_task(
                self._tick(), name="outlive live", context=Context()
            )

    async def _tick(self) -> None:
        while self._viewers:
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_IN_DRAIN if self._stopping() else TICK):
                    await self._hurry.wait()
            # Before the news are made: what happens meanwhile is told at once after them.
            self._hurry.clear()
            news = await self._news()
            if self._is_over():
                last = event("end", news)
                for viewer in self._viewers:
                    viewer.end(last)
                return
            message = event("state", news)
            for viewer in self._viewers:
                viewer.tell(message)

    def _stopping(self) -> bool:
        if server_waits():
            self._begin_drain()
        return self._runner.state is not State.OPEN

    def _is_over(self) -> bool:
        if self._runner.state is State.CLOSED:
            return True
        if not self._stopping() or server_waits() is False or self._runner.connections:
            return False
        self._note_alone()
        counts = self._runner.counts
        return counts.running + counts.pending == 0 or self._held >= self._patience

    def _note_alone(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._alone_since is None:
            self._alone_since = now
        self._held = now - self._alone_since


def event(name: str, data: bytes) -> bytes:
    """One server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
