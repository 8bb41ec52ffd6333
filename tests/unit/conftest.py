"""Event loops to test on. Time is virtual: it jumps to the next timer as soon as nothing else is to be done."""

import asyncio
import selectors
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message

from outlive import Observer, Outlive
from outlive.observer import EVENTS

R = TypeVar("R")
Run = Callable[[Coroutine[Any, Any, R]], R]


class JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for a timer, it moves the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            # Nothing is scheduled: only another thread or a socket can go on. A test that hangs should say so.
            events = super().select(10)
            assert events, "the event loop has nothing to do and nothing to wait for: a deadlock"
            return events
        events = super().select(0)
        if not events and timeout > 0:
            self.now += timeout
        return events


class VirtualClockLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        # A nanosecond more than asked for, or a timer could be due in so little that the clock can't show it.
        return self._jumping.now + 1e-9

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        # Threads are waited for without the runner's timeout, which virtual time would spend at once.
        await super().shutdown_default_executor()


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = VirtualClockLoop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    return loop


def uvloop_loop() -> asyncio.AbstractEventLoop:
    return pytest.importorskip("uvloop").new_event_loop()  # type: ignore[no-any-return]


VIRTUAL: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": VirtualClockLoop}
if sys.version_info >= (3, 12):
    VIRTUAL["eager"] = eager_loop


@pytest.fixture(params=VIRTUAL)
def run(request: pytest.FixtureRequest) -> Run[Any]:
    """Run a coroutine in virtual time."""

    def run(main: Coroutine[Any, Any, R]) -> R:
        with asyncio.Runner(loop_factory=VIRTUAL[request.param]) as runner:
            return runner.run(main)

    return run


@pytest.fixture(params=VIRTUAL)
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Make an event loop in virtual time, for tests that need several or drive one by hand."""
    return VIRTUAL[request.param]


@pytest.fixture(params=[*VIRTUAL, "uvloop"])
def run_anywhere(request: pytest.FixtureRequest) -> Run[Any]:
    """Run a coroutine that needs no time to pass, on uvloop too."""
    factory = {**VIRTUAL, "uvloop": uvloop_loop}[request.param]

    def run(main: Coroutine[Any, Any, R]) -> R:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main)

    return run


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def outlive(registry: CollectorRegistry) -> Outlive:
    return Outlive(registry=registry)


class Wire:
    """One connection, with the test in the server's place."""

    def __init__(self, app: ASGIApp, scope: dict[str, Any], incoming: Iterable[Message]) -> None:
        self.scope = scope
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.put(*incoming)
        self.receivers = 0
        self.received: list[Message] = []
        self.taker: asyncio.Task[Any] | None = None
        self.sent: list[Message] = []
        self.send_error: BaseException | None = None
        self.while_sending: Callable[[], Coroutine[Any, Any, None]] | None = None
        self.handler: asyncio.Future[None] = asyncio.ensure_future(app(scope, self.receive, self.send))

    def put(self, *messages: Message) -> None:
        for message in messages:
            self.incoming.put_nowait(message)

    async def receive(self) -> Message:
        self.receivers += 1
        try:
            message = await self.incoming.get()
        finally:
            self.receivers -= 1
        self.received.append(message)
        self.taker = asyncio.current_task()
        return message

    async def send(self, message: Message) -> None:
        if self.send_error is not None:
            raise self.send_error
        self.sent.append(message)
        if self.while_sending is not None:
            await self.while_sending()

    @property
    def status(self) -> int:
        return next(
            int(message["status"]) for message in self.sent if message["type"] == "http.response.start"
        )

    @property
    def body(self) -> bytes:
        return b"".join(
            message.get("body", b"") for message in self.sent if message["type"] == "http.response.body"
        )


@pytest.fixture
def wire() -> Callable[..., Wire]:
    """Connect to an app, as a server does: `wire(app, "websocket", "/rooms/a")`."""

    def connect(
        app: ASGIApp,
        kind: str,
        path: str,
        *,
        method: str = "GET",
        headers: Iterable[tuple[bytes, bytes]] = (),
        root_path: str = "",
        query: bytes = b"",
        spec_version: str = "2.3",
        extensions: dict[str, Any] | None = None,
        incoming: Iterable[Message] | None = None,
    ) -> Wire:
        scope: dict[str, Any] = {
            "type": kind,
            "asgi": {"version": "3.0", "spec_version": spec_version},
            "http_version": "1.1",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": root_path,
            "query_string": query,
            "headers": list(headers),
            "client": ("192.0.2.1", 40000),
            "server": ("192.0.2.2", 80),
            "extensions": extensions or {},
            "state": {},
        }
        if kind == "http":
            scope["method"] = method
            first: Message = {"type": "http.request", "body": b"", "more_body": False}
        else:
            scope["subprotocols"] = []
            first = {"type": "websocket.connect"}
        return Wire(app, scope, [first] if incoming is None else incoming)

    return connect


@pytest.fixture
def lifespan() -> Callable[[ASGIApp], AbstractAsyncContextManager[dict[str, Any]]]:
    """Start and stop an app by ASGI's lifespan protocol; gives the lifespan's state."""

    @asynccontextmanager
    async def started(app: ASGIApp) -> AsyncGenerator[dict[str, Any], None]:
        incoming: asyncio.Queue[Message] = asyncio.Queue()
        outgoing: asyncio.Queue[Message] = asyncio.Queue()
        scope: dict[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        server = asyncio.ensure_future(app(scope, incoming.get, outgoing.put))
        incoming.put_nowait({"type": "lifespan.startup"})
        told = await outgoing.get()
        if told["type"] != "lifespan.startup.complete":
            await server
        yield scope["state"]
        incoming.put_nowait({"type": "lifespan.shutdown"})
        told = await outgoing.get()
        await server
        assert told["type"] == "lifespan.shutdown.complete"

    return started


class Recorder(Observer):
    """Keeps all that it is told, as `(event, *details)`."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def of(self, *events: str) -> list[tuple[Any, ...]]:
        return [heard for heard in self.heard if heard[0] in events]


def _recording(event: str) -> Callable[..., None]:
    return lambda self, *details: self.heard.append((event, *details))


for _event in EVENTS:
    setattr(Recorder, _event, _recording(_event))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def watched(registry: CollectorRegistry, recorder: Recorder) -> Callable[..., Outlive]:
    """Make an Outlive with settings of the test's own, heard by `recorder`."""
    return lambda **settings: Outlive(registry=registry, observers=[recorder], **settings)


@pytest.fixture
def serving() -> Callable[..., AbstractAsyncContextManager[FastAPI]]:
    """Be inside the lifespan of an app with this Outlive. What only the event loop hears of fails the test."""

    @asynccontextmanager
    async def serving(outlive: Outlive, app: FastAPI | None = None) -> AsyncGenerator[FastAPI]:
        unheard: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unheard.append(context))
        if app is None:
            app = FastAPI()
            outlive.install(app)
        async with app.router.lifespan_context(app):
            yield app
        assert unheard == []

    return serving
