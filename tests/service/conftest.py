"""A real PostgreSQL, real servers: what the tests of the service stand on."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped]
import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from postgresql import PostgreSQL
from prometheus_client import CollectorRegistry

from outlive import Outcome
from outlive_service.app import create_app
from outlive_service.partner import create_partner
from outlive_service.settings import PartnerSettings, Settings
from outlive_service.store import Store


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The folder of the socket of a PostgreSQL server of our own."""
    with PostgreSQL() as server:
        yield str(server.folder)


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a new, empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'outlive.db'}"
        return
    socket = request.getfixturevalue("postgresql")
    name = f"test_{uuid4().hex}"
    server = await asyncpg.connect(host=socket, user="postgres", database="postgres")
    try:
        await server.execute(f"CREATE DATABASE {name}")
        yield f"postgresql://postgres@/{name}?host={socket}"
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await server.close()


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    store = await Store(database).create()
    yield store
    await store.close()


@contextmanager
def server_of(app: FastAPI, graceful_timeout: int | None) -> Iterator[str]:
    """A real uvicorn in a thread, on a free port."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=graceful_timeout)
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server didn't start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server didn't stop"


@pytest.fixture
def serve() -> Iterator[Callable[[FastAPI], str]]:
    """Serves apps until the test's end, the last one first to stop."""
    with ExitStack() as servers:
        yield lambda app: servers.enter_context(server_of(app, None))


class Service:
    """The service and its partner, served, and what can be seen of them from outside."""

    def __init__(self, database: str, partner: str, store: Store, stack: ExitStack) -> None:
        self.settings: dict[str, Any] = {
            "database_url": database,
            "partner_url": partner,
            "upstream_url": partner,
            "departure_grace": 0.2,
            "stop_grace": 60.0,
        }
        self.partner = partner
        self.store = store
        self.registry = CollectorRegistry()
        self.url = ""
        self._stack = stack

    def start(self, *, graceful: int | None = None, tracer_provider: Any = None, **settings: object) -> str:
        """Start with these settings."""
        app = create_app(
            Settings.model_validate(self.settings | settings),
            registry=self.registry,
            tracer_provider=tracer_provider,
        )
        self.url = self._stack.enter_context(server_of(app, graceful))
        return self.url

    async def stop(self) -> None:
        """Stop as on SIGTERM, and wait for the drain."""
        await asyncio.to_thread(self._stack.close)

    async def records(self) -> Any:
        """What reached the partner."""
        async with httpx.AsyncClient() as client:
            return (await client.get(f"{self.partner}/records")).json()

    async def faults(self, **faults: object) -> None:
        """Let the partner go wrong."""
        async with httpx.AsyncClient() as client:
            (await client.put(f"{self.partner}/faults", json=faults)).raise_for_status()

    def runs(self, task: str) -> dict[str, int]:
        """The outcomes of a task's runs so far, those that there were."""
        counted = {
            outcome: self.registry.get_sample_value(
                "outlive_runs_total", {"task": task, "outcome": outcome.value}
            )
            for outcome in Outcome
        }
        return {outcome.value: int(count) for outcome, count in counted.items() if count}

    async def until(self, condition: Callable[[], Awaitable[object]]) -> None:
        """Wait until the condition holds."""
        async with asyncio.timeout(15):
            while not await condition():  # noqa: ASYNC110 - it holds in other threads
                await asyncio.sleep(0.01)

    async def ended(self, **tasks: int) -> None:
        """Wait until so many runs of these tasks have ended."""

        async def condition() -> bool:
            return all(sum(self.runs(task).values()) >= count for task, count in tasks.items())

        await self.until(condition)


@pytest.fixture
async def service(database: str, store: Store, serve: Callable[[FastAPI], str]) -> AsyncIterator[Service]:
    """The service, yet to be started, and its partner."""
    partner = serve(create_partner(PartnerSettings(token_interval=0.005)))
    with ExitStack() as stack:
        yield Service(database, partner, store, stack)
