"""The app that the servers of the matrix run: a route for each end, handler and way, and the same work after each.

A process that shows the other ways has no Outlive in it, which would wait for them and tell them of disconnects.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import product

import anyio
import httpx
from fastapi import BackgroundTasks, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from outlive import AfterDisconnect, Outlive, Task
from outlive_conformance.handlers import TALKING, ClosingStream, Finish, answer, pieces, provoked
from outlive_conformance.matrix import End, Handler, Way, task_name
from outlive_conformance.state import STATE_PATH, Spans, Watching
from outlive_conformance.surroundings import Surroundings
from outlive_service.records import Transcript
from outlive_service.store import Store

TASK_TIMEOUT = 30.0
DRAIN_TIMEOUT = 40.0
"""Seconds. Long: what is slow on a busy machine is no news."""


class Work:
    """What must be done after a disconnect: call the partner, take a moment, write to the database."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._opened: asyncio.Task[None] | None = None
        self._client: httpx.AsyncClient
        self._store: Store

    async def open(self) -> None:
        """Connect, once: a server without lifespan leaves that to the first work."""
        if self._opened is None:
            self._opened = asyncio.create_task(self._open())
        await asyncio.shield(self._opened)

    async def _open(self) -> None:
        self._client = httpx.AsyncClient(timeout=TASK_TIMEOUT)
        self._store = await Store(self._surroundings.database_url).create()

    async def close(self) -> None:
        """Disconnect."""
        await self._client.aclose()
        await self._store.close()

    async def do(self, key: str) -> None:
        """Do it; the partner and the database know it by the key."""
        self._surroundings.note("begun", key)
        await self.open()
        response = await self._client.post(
            f"{self._surroundings.partner_url}/notices",
            json={"session": key, "room": "conformance", "user": "conformance", "lines": 0},
            headers={"Idempotency-Key": key},
        )
        response.raise_for_status()
        await asyncio.sleep(self._surroundings.work_seconds)
        await self._store.save_session(Transcript(key, "conformance", "conformance"))

    async def finish(self, task: Task[[str], None], way: Way, key: str) -> None:
        """Do it in one of the ways, as a handler's clean-up does."""
        match way:
            case Way.PLAIN_AWAIT:
                await self.do(key)
            case Way.ANYIO_SHIELD:
                with anyio.CancelScope(shield=True):
                    await self.do(key)
            case Way.ASYNCIO_SHIELD:
                await asyncio.shield(self.do(key))
            case Way.OUTLIVE:
                task.submit(key)
            case Way.AWAITED:
                await task(key)


class Routes:
    """The routes of one end, handler and way."""

    def __init__(self, app: FastAPI, surroundings: Surroundings, end: End) -> None:
        self._app = app
        self._surroundings = surroundings
        self._end = end

    def add(
        self, path: str, handler: Handler, task: Task[[str], None], finish: Callable[[str], Finish]
    ) -> None:
        """Add the route of a handler."""
        if handler.is_websocket:
            self._add_websocket(path, handler, finish)
        elif handler is Handler.EVENTS:
            self._add_stream(path, "text/event-stream", finish)
        elif handler is Handler.STREAM:
            self._add_stream(path, "text/plain", finish)
        elif handler is Handler.REQUEST:
            self._add_request(path, finish)
        elif self._surroundings.outlive:
            self._add_after_disconnect(path, task)
        else:
            self._add_background(path, finish)

    def _add_websocket(self, path: str, handler: Handler, finish: Callable[[str], Finish]) -> None:
        @self._app.websocket(path)
        async def talk(websocket: WebSocket, key: str) -> None:
            await websocket.accept()
            self._surroundings.note("entered", key)
            with provoked(self._end):
                await TALKING[handler](websocket, self._end, finish(key))

    def _add_stream(self, path: str, media_type: str, finish: Callable[[str], Finish]) -> None:
        @self._app.get(path)
        async def stream(key: str) -> StreamingResponse:
            enter = partial(self._surroundings.note, "entered", key)
            return ClosingStream(pieces(self._end, enter, finish(key)), self._end, media_type)

    def _add_request(self, path: str, finish: Callable[[str], Finish]) -> None:
        @self._app.get(path)
        async def request(key: str) -> str:
            self._surroundings.note("entered", key)
            with provoked(self._end):
                try:
                    return await answer(self._end)
                finally:
                    await finish(key)()
            return "cancelled"

    def _add_after_disconnect(self, path: str, task: Task[[str], None]) -> None:
        @self._app.get(path)
        async def respond(key: str, after: AfterDisconnect) -> str:
            after.add_task(task, key)
            return await self._respond(key)

    def _add_background(self, path: str, finish: Callable[[str], Finish]) -> None:
        @self._app.get(path)
        async def respond(key: str, background: BackgroundTasks) -> str:
            background.add_task(finish(key))
            return await self._respond(key)

    async def _respond(self, key: str) -> str:
        self._surroundings.note("entered", key)
        with provoked(self._end):
            return await answer(self._end)
        return "cancelled"


def application(surroundings: Surroundings) -> FastAPI:
    """Build the app."""
    spans, registry = Spans(), CollectorRegistry()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(spans)
    watching = Watching(surroundings, registry, spans)
    outlive = Outlive(
        drain_timeout=DRAIN_TIMEOUT,
        registry=registry,
        tracer_provider=provider,
        observers=[watching],
        pages={STATE_PATH: watching.page()},
    )
    watching.outlive = outlive
    work = Work(surroundings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await work.open()
        yield
        await work.close()

    app = FastAPI(lifespan=lifespan)
    for end, handler, way in product([End[name] for name in surroundings.ends], Handler, Way):
        name = task_name(end, handler, way)
        task = outlive.task(timeout=TASK_TIMEOUT, name=name)(work.do)
        finish = partial(partial, work.finish, task, way)
        Routes(app, surroundings, end).add(f"/{name}/{{key}}", handler, task, finish)
    if surroundings.outlive:
        outlive.install(app)
    return app
