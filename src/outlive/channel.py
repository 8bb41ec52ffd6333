"""The messages of one connection: what they tell of its end, and who tells its handler."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context

from starlette.routing import BaseRoute
from starlette.types import Message, Receive, Scope, Send

from outlive.connections import UNMATCHED, Connection
from outlive.observer import Observer
from outlive.outcomes import Cause, State, Transport
from outlive.routes import route_template
from outlive.runner import Runner
from outlive.turnstile import Turnstile

MOST_KEPT = 16
"""So many messages are kept for a handler that doesn't receive, while it is watched for."""
MOST_KEPT_SIZE = 65_536
"""When this many characters or bytes are kept, no more are received; the last message may be as large as the server lets in."""
HELD = 1.0
"""Seconds after its stop in which a server can answer the sends and receives of handlers that it still has."""
LAST_LOOKS = 5
LAST_LOOK_INTERVAL = 0.01
"""How often, and how many seconds apart, the cause of a disconnect is looked for that a send has run into."""

LAST = frozenset(
    {
        "http.response.body",
        "http.response.pathsend",
        "http.response.zerocopysend",
        "websocket.close",
        "websocket.http.response.body",
    }
)
"""Messages after which there are none, unless they say that there is more."""


class Channel:
    """The messages of one connection.

    It adds one look to each message: no copy, no task, no span. A handler that doesn't receive can't see a
    disconnect, and most servers don't tell it when it sends. So once a handler hasn't been receiving for a while, the
    channel receives on its behalf; what arrives is kept, in order, for the handler's next receives. When
    `MOST_KEPT` messages or `MOST_KEPT_SIZE` are kept, it stops, and back-pressure is the server's again: a client that
    says more than that to a handler that never listens isn't watched any longer. After a disconnect that it hasn't
    been told of, a handler's send raises OSError, as ASGI wants it (specification of HTTP and WebSocket, "send" after a
    disconnect, 2.4).
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        runner: Runner,
        observer: Observer,
        routes: Callable[[], Sequence[BaseRoute]],
        turnstile: Turnstile,
    ) -> None:
        self._websocket = scope["type"] == "websocket"
        transport = Transport.WEBSOCKET if self._websocket else Transport.HTTP
        self.connection = Connection(scope.get("method", "GET"), transport, observer, turnstile.loop.time)
        self._receive = receive
        self._send = send
        self._runner = runner
        self._observer = observer
        self._routes = routes
        self._root_path = scope.get("root_path", "")
        self._turnstile = turnstile
        self._loop = turnstile.loop
        self._identified = False
        self._status: int | None = None
        self._ended_at: float | None = None
        self._ending = False
        self._handler = asyncio.current_task()
        self._sending = 0
        self._receiving = 0
        self._received = 0
        self._received_before = -1
        self._watch: asyncio.Task[None] | None = None
        self._kept: list[Message] = []
        self._kept_size = 0
        self._arrived: asyncio.Event | None = None
        self._told = True
        self._scope = scope
        self._more_body: bool | None = None

    async def receive(self) -> Message:
        """The handler's receive."""
        if not self._identified:
            self.identify()
        self._received += 1
        if self._watch is not None or self._kept:
            message = await self._receive_kept()
        else:
            # Not by `_receive_fresh`: a coroutine less saves 0.15 µs of 0.4 for each message.
            self._receiving += 1
            try:
                message = await self._receive()
            finally:
                self._receiving -= 1
            if message["type"] == "websocket.receive":
                return message
            self._look_at(message)
        if message["type"].endswith(".disconnect"):
            try:
                await self._turnstile.go_through()
            except BaseException:  # the server won't tell it a second time, but this does
                self._kept.insert(0, message)
                raise
            self._told = True
        return message

    async def _receive_fresh(self) -> Message:
        self._receiving += 1
        try:
            message = await self._receive()
        finally:
            self._receiving -= 1
        self._look_at(message)
        return message

    async def _receive_kept(self) -> Message:
        # The watch's receive can't be taken back: a server could lose a message with it. So its message is waited for.
        self._receiving += 1
        try:
            while self._watch is not None and not self._kept:
                self._arrived = asyncio.Event()
                await self._arrived.wait()
        finally:
            self._receiving -= 1
        if not self._kept:
            return await self._receive_fresh()
        message = self._kept.pop(0)
        self._kept_size -= _size(message)
        return message

    async def send(self, message: Message) -> None:
        """The handler's send."""
        kind = message["type"]
        if not self._identified:
            self.identify(final=True)
        if not self._told and self._raises_at(message):
            self._told = True
            raise OSError("the client has gone")
        if kind == "http.response.start":
            status = message["status"]
            # What isn't a status is refused by the server, and must not become a label.
            self._status = status if isinstance(status, int) and 100 <= status < 600 else None
            if _streams_events(message):
                self.connection.transport = Transport.SSE
                self._tell_identity()
        # Noted before it is sent: a server may wait in its last send, and tell whoever receives meanwhile of the end.
        self._ending = kind in LAST and not message.get("more_body", False)
        self._sending += 1
        try:
            await self._send(message)
        except Exception as error:
            self._ending = False
            gone = isinstance(error, OSError)
            if (self._websocket and await self._learns_of_end()) or gone:
                self._disconnected(Cause.CLIENT_LOST)
                self._told = True
                if not gone:
                    # OSError is what ASGI has for it, but a server may raise what its own library does.
                    raise OSError("the client has gone") from error
            raise
        finally:
            self._sending -= 1
        if self._ending:
            self._end()

    async def _learns_of_end(self) -> bool:
        # A send that fails doesn't tell whether a close frame came. The server's last message does, and it is due.
        self._begin_watch()
        for _ in range(LAST_LOOKS):
            if self._ended_at is not None:
                return True
            await asyncio.sleep(LAST_LOOK_INTERVAL)
        return self._ended_at is not None

    def _raises_at(self, message: Message) -> bool:
        # A plain response in one piece is dropped in silence, as the servers do: for nobody is there to stop.
        if self._websocket:
            return True
        # Before 2.4 a send after a disconnect is silently dropped, and Starlette relies on either.
        version = self._scope.get("asgi", {}).get("spec_version", "2.0")
        return tuple(map(int, version.split("."))) >= (2, 4) and bool(message.get("more_body", False))

    def identify(self, *, final: bool = False) -> None:
        """Learn the route, as soon as the router has chosen it."""
        if not self._identified:
            route = route_template(self._scope, self._routes, self._root_path, final=final)
            if route is not None:
                self.connection.route = route
                self._tell_identity()

    def _tell_identity(self) -> None:
        self._identified = True
        connection = self.connection
        self._observer.connection_identified(connection.details, connection.route, connection.transport)

    def _look_at(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.disconnect":
            self._disconnected(_cause(message))
        elif kind == "http.disconnect":
            self._disconnected(Cause.CLIENT_LOST)
        elif kind == "http.request":
            self._more_body = message.get("more_body", False)

    def _disconnected(self, cause: Cause) -> None:
        if self._ended_at is None and not self._ending:
            if not self._identified:
                self.identify(final=True)  # of a mounted app that has no routes there is no more to know
            shutdown = self._runner.state is not State.OPEN
            self.connection.disconnected(Cause.SERVER_SHUTDOWN if shutdown else cause)
            self._end()

    def _end(self) -> None:
        if self._ended_at is None:
            self._ended_at = self._loop.time()

    def server_stopped(self) -> None:
        """The server has closed every connection, and may not have told the handlers: their next send does.

        A handler that it doesn't answer any more is cancelled, as others are by servers with a graceful timeout.
        """
        if self._ended_at is None and not self._ending:
            self._told = False
            self._disconnected(Cause.SERVER_SHUTDOWN)
        self._loop.call_later(HELD, self._let_go, context=Context())

    def _let_go(self) -> None:
        if self._handler is not None and (self._sending or self._receiving):
            self._handler.cancel()

    def handler_raised(self, error: BaseException) -> None:
        """The handler didn't return."""
        if self._ended_at is not None:
            return
        self._ending = False
        if isinstance(error, asyncio.CancelledError):
            # Nobody but the server cancels the call of an ASGI application.
            self._disconnected(Cause.SERVER_SHUTDOWN)
        elif self._websocket or self._status is not None:
            self._disconnected(Cause.ERROR)
        else:
            # Nothing was sent: the middleware for server errors, outside of this one, answers in full.
            self._status = 500

    def handler_returned(self) -> None:
        """The handler is done, in whatever way: close the connection's books."""
        self._handler = None
        if self._watch is not None:
            self._watch.cancel()
        connection = self.connection
        self._end()
        assert self._ended_at is not None
        if not self._identified:
            self.identify(final=True)
            if not self._identified:
                connection.route = UNMATCHED
                self._tell_identity()
        for submit in connection.at_end:
            submit()
        duration = self._ended_at - connection.details.opened_at
        self._observer.connection_closed(
            connection.details, duration, self._status, None if self._websocket else duration
        )
        if connection.disconnect is not None:
            connection.handler_returned()

    def watch_when_idle(self) -> None:
        """Begin to watch for a disconnect if the handler hasn't been receiving since the last call."""
        if self._received == self._received_before:
            self._begin_watch()
        self._received_before = self._received

    def _begin_watch(self) -> None:
        if (
            self._receiving
            or self._watch is not None
            or self._keeps_enough
            or self._ended_at is not None
            # A server may ask the client for the body as soon as it is received from: that is the handler's choice.
            or self._body_expected
        ):
            return
        # A context of its own: an eager task can't enter one that its creator runs in.
        watch = self._loop.create_task(self._keep(), name="outlive watch", context=Context())
        self._watch = None if watch.done() else watch

    def _wake(self) -> None:
        if self._arrived is not None:
            self._arrived.set()

    @property
    def _body_expected(self) -> bool:
        if self._more_body is None:
            return not self._websocket and any(
                name in (b"content-length", b"transfer-encoding") for name, _ in self._scope["headers"]
            )
        return self._more_body

    @property
    def _keeps_enough(self) -> bool:
        return len(self._kept) >= MOST_KEPT or self._kept_size >= MOST_KEPT_SIZE

    async def _keep(self) -> None:
        try:
            more = True
            while more:
                message = await self._receive()
                self._kept.append(message)
                self._kept_size += _size(message)
                gone = message["type"].endswith(".disconnect")
                self._told = not gone
                self._look_at(message)
                self._wake()
                # A handler that waits receives by itself from here on, at the speed of an unwatched one.
                more = not (gone or self._receiving or self._body_expected or self._keeps_enough)
        except Exception:  # noqa: BLE001, S110 - the server will tell the handler itself, at its next receive
            pass
        finally:
            self._watch = None
            self._wake()


def _streams_events(start: Message) -> bool:
    for name, value in start.get("headers", ()):
        if name.lower() == b"content-type":
            return bool(value.startswith(b"text/event-stream"))
    return False


def _size(message: Message) -> int:
    return len(message.get("text") or message.get("bytes") or message.get("body") or b"")


def _cause(message: Message) -> Cause:
    """Why a WebSocket was disconnected, from what the servers tell.

    1012 is what uvicorn tells at shutdown; 1006 never comes in a frame (RFC 6455, section 7.4.1). 1011 is the
    server's own after an unanswered ping. 1005 is an empty close frame, unless no reason is told along with it: so
    uvicorn with wsproto or websockets-sansio tells a lost transport.
    """
    code = message.get("code") or 1005
    if code == 1012:
        return Cause.SERVER_SHUTDOWN
    if code in (1006, 1011) or (code == 1005 and "reason" not in message):
        return Cause.CLIENT_LOST
    return Cause.CLIENT_CLOSED
