"""Pure ASGI middleware: lets connections in, counts them, and looks after those that are open."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context

from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from outlive import connections
from outlive.channel import Channel
from outlive.observer import Observer
from outlive.outcomes import ConnectionRejection
from outlive.runner import Runner
from outlive.turnstile import Turnstile

SWEEP_INTERVAL = 0.4
"""Seconds between two looks at all connections. A handler that hasn't been receiving from one to the next is watched for."""
IDENTIFY_INTERVAL = 0.02
"""Seconds after which the router has chosen a route for those that came meanwhile; most requests have ended by then."""
RETRY_AFTER = 5
"""Seconds after which a client that wasn't let in may try again."""
FULL = PlainTextResponse("too many connections", 503, {"retry-after": str(RETRY_AFTER)})


class ConnectionMiddleware:
    """Follows every connection from its start to the return of its handler.

    Parameters:
        pages: applications of Outlive's own by path; they answer before the app and count as no connection.
        before: called ahead of each connection.
        channels: where those of the connections in flight are kept.
        watch: whether a handler that doesn't receive is told of a disconnect (see `Channel`).
        max_connections: how many are open at once; what comes on top is answered 503.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        runner: Runner,
        observer: Observer,
        routes: Callable[[], Sequence[BaseRoute]],
        pages: Mapping[str, ASGIApp],
        before: Callable[[], None],
        channels: set[Channel],
        watch: bool,
        max_connections: int,
    ) -> None:
        self.app = app
        self._runner = runner
        self._observer = observer
        self._routes = routes
        self._pages = pages
        self._before = before
        self._watch = watch
        self._channels = channels
        self._max_connections = max_connections
        self._clean_context = Context()
        self._sweeping: asyncio.AbstractEventLoop | None = None
        self._new: set[Channel] = set()
        self._identifying: asyncio.AbstractEventLoop | None = None
        self._turnstile: Turnstile | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        root_path = scope.get("root_path", "")
        if scope["type"] == "http" and (page := self._pages.get(scope["path"].removeprefix(root_path))):
            await page(scope, receive, send)
            return
        if len(self._channels) >= self._max_connections:
            self._observer.connection_rejected(ConnectionRejection.FULL)
            await _reject(scope, receive, send)
            return

        self._before()
        loop = asyncio.get_running_loop()
        turnstile = self._turnstile
        if turnstile is None or turnstile.loop is not loop:
            turnstile = self._turnstile = Turnstile(loop)
        channel = Channel(scope, receive, send, self._runner, self._observer, self._routes, turnstile)
        connection = channel.connection
        token = connections.current.set(connection)
        self._runner.connection_opened()
        self._observer.connection_opened(connection.details)
        self._channels.add(channel)
        self._new.add(channel)
        if self._identifying is not loop:
            self._identify_soon(loop)
        if self._sweeping is not loop:
            self._sweep_soon(loop)
        try:
            await self.app(scope, channel.receive, channel.send)
        except BaseException as error:
            channel.handler_raised(error)
            raise
        finally:
            self._channels.discard(channel)
            # Not left for the next look: what a request holds, kept 20 ms longer, made requests 9 % slower.
            self._new.discard(channel)
            try:
                channel.handler_returned()
            finally:
                # Whatever goes wrong in the books, a drain must not wait for this handler any more.
                connections.current.reset(token)
                self._runner.connection_closed()

    def _identify_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        # A callback for each connection would cost 1.1 µs of the 8.4 that a request costs in all.
        self._identifying = loop
        loop.call_later(IDENTIFY_INTERVAL, self._identify_new, context=self._clean_context)

    def _identify_new(self) -> None:
        self._identifying = None
        new, self._new = self._new, set()
        for channel in new:
            channel.identify()

    def _sweep_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        # One timer for all connections instead of one for each.
        self._sweeping = loop
        loop.call_later(SWEEP_INTERVAL, self._sweep, loop, context=self._clean_context)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeping = None
        if self._channels:
            self._sweep_soon(loop)
        for channel in self._channels:
            channel.identify()  # for handlers behind a middleware that took its time before the router chose
            if self._watch:
                channel.watch_when_idle()


async def _reject(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http" or "websocket.http.response" in (scope.get("extensions") or {}):
        await FULL(scope, receive, send)
    else:
        # Before the handshake a server makes a 403 of it: 1013 is for whoever looks at the messages.
        await send({"type": "websocket.close", "code": 1013})
