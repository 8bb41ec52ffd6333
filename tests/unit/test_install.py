"""Outlive on an app: its lifespan, its middleware, its pages, and what handlers ask to run at the end."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from opentelemetry import trace
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import Message, Receive, Scope, Send

from outlive import AfterDisconnect, DeclarationError, InstallError, Outcome, Outlive, State

LEFT: Message = {"type": "websocket.disconnect", "code": 1001, "reason": ""}

# The lifespan


def test_the_apps_own_lifespan_is_kept_and_its_state_yielded(
    run: Any, outlive: Outlive, lifespan: Any
) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncGenerator[dict[str, str], None]:
        seen.append("up")
        yield {"pool": "a pool"}
        seen.append("down")

    app = FastAPI(lifespan=own)
    outlive.install(app)

    async def main() -> None:
        async with lifespan(app) as state:
            assert state["pool"] == "a pool"
            assert str(outlive.state) == "open"
            assert seen == ["up"]
        assert seen == ["up", "down"]
        assert str(outlive.state) == "closed"

    run(main())


def test_the_apps_resources_outlive_its_runs(run: Any, outlive: Outlive, lifespan: Any) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncGenerator[None, None]:
        yield
        seen.append("pool closed")

    @outlive.task(timeout=5.0)
    async def save() -> None:
        await asyncio.sleep(3)
        seen.append("saved")

    app = FastAPI(lifespan=own)
    outlive.install(app)

    async def main() -> None:
        async with lifespan(app):
            save.submit()

    run(main())
    assert seen == ["saved", "pool closed"]


@pytest.mark.parametrize("included", ["before", "after"])
def test_a_routers_resources_outlive_the_runs_too(
    run: Any, outlive: Outlive, lifespan: Any, included: str
) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncGenerator[None, None]:
        yield
        seen.append("pool closed")

    @outlive.task(timeout=5.0)
    async def save() -> None:
        await asyncio.sleep(3)
        seen.append("saved")

    app, router = FastAPI(), APIRouter(lifespan=own)
    if included == "before":
        app.include_router(router)
    outlive.install(app)
    if included == "after":
        app.include_router(router)

    async def main() -> None:
        async with lifespan(app):
            save.submit()

    run(main())
    assert seen == ["saved", "pool closed"]


def test_runs_are_possible_from_the_apps_start_up_on(run: Any, outlive: Outlive, lifespan: Any) -> None:
    @outlive.task(timeout=5.0)
    async def warm_up() -> None: ...

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncGenerator[None, None]:
        await warm_up()
        yield

    app = FastAPI(lifespan=own)
    outlive.install(app)

    async def main() -> None:
        async with lifespan(app):
            assert outlive.counts.outcomes[Outcome.COMPLETED] == 1

    run(main())


def test_a_start_up_that_fails_closes_cleanly_and_can_be_tried_again(
    run: Any, outlive: Outlive, lifespan: Any
) -> None:
    broken = [True]

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncGenerator[None, None]:
        if broken:
            raise LookupError("no database")
        yield

    app = FastAPI(lifespan=own)
    outlive.install(app)

    async def main() -> None:
        with pytest.raises(LookupError, match="no database"):
            async with lifespan(app):
                pass
        assert str(outlive.state) == "closed"
        broken.clear()
        async with lifespan(app):
            assert str(outlive.state) == "open"

    run(main())


def test_an_app_that_raises_at_its_stop_leaves_outlive_closed(
    run: Any, outlive: Outlive, lifespan: Any
) -> None:
    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncGenerator[None, None]:
        yield
        raise LookupError

    app = FastAPI(lifespan=own)
    outlive.install(app)

    async def main() -> None:
        with pytest.raises(LookupError):
            async with lifespan(app):
                pass
        assert outlive.state is State.CLOSED

    run(main())


def test_one_outlive_lives_through_many_lifespans(outlive: Outlive) -> None:
    @outlive.task(timeout=5.0)
    async def save() -> None: ...

    app = FastAPI()
    outlive.install(app)

    @app.get("/")
    async def root() -> None:
        await save()

    for completed in (1, 2, 3):
        with TestClient(app) as client:
            assert client.get("/").is_success
        assert outlive.counts.outcomes[Outcome.COMPLETED] == completed
        assert outlive.state is State.CLOSED


# What cannot be installed


def test_installing_twice_is_an_error(outlive: Outlive) -> None:
    app = FastAPI()
    outlive.install(app)
    with pytest.raises(InstallError, match="has an Outlive already"):
        outlive.install(app)


def test_two_outlives_on_one_app_are_an_error(outlive: Outlive, registry: CollectorRegistry) -> None:
    app = FastAPI()
    outlive.install(app)
    with pytest.raises(InstallError, match="has an Outlive already"):
        Outlive(registry=registry).install(app)


def test_one_outlive_on_two_apps_is_an_error(outlive: Outlive) -> None:
    outlive.install(FastAPI())
    with pytest.raises(InstallError, match="another app"):
        outlive.install(FastAPI())


def test_a_started_app_is_an_error(outlive: Outlive) -> None:
    app = FastAPI()
    with TestClient(app), pytest.raises(InstallError, match="has been started"):
        outlive.install(app)


def test_two_tasks_of_one_name_are_an_error(outlive: Outlive) -> None:
    async def save() -> None: ...

    outlive.task(timeout=1.0)(save)
    with pytest.raises(DeclarationError, match="two tasks are named 'save'"):
        outlive.task(timeout=1.0)(save)


def test_another_event_loop_library_is_told_in_one_sentence(outlive: Outlive) -> None:
    app = FastAPI()
    outlive.install(app)
    # Whoever drives a coroutine without a running asyncio loop is another library.
    starting = app.router.lifespan_context(app).__aenter__()
    with pytest.raises(InstallError, match="asyncio only"):
        starting.send(None)


# Middleware


def test_middleware_added_later_stays_inside(outlive: Outlive, registry: CollectorRegistry) -> None:
    app = FastAPI()
    outlive.install(app)

    class Refuse:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 403, "headers": []})
                await send({"type": "http.response.body"})
            else:
                await self.app(scope, receive, send)

    app.add_middleware(Refuse)
    with TestClient(app) as client:
        assert client.get("/items/1").status_code == 403
        assert client.get("/healthz").status_code == 200
    labels = {"route": "unmatched", "method": "GET", "status": "403"}
    assert registry.get_sample_value("outlive_http_request_duration_seconds_count", labels) == 1


@pytest.mark.parametrize("added", ["before", "after"])
def test_basehttpmiddleware_hides_neither_route_nor_disconnect_nor_work(
    run: Any, outlive: Outlive, registry: CollectorRegistry, lifespan: Any, wire: Any, added: str
) -> None:
    app = FastAPI()

    async def dispatch(request: Request, call_next: Any) -> Any:
        await asyncio.sleep(0)
        return await call_next(request)

    if added == "before":
        app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    outlive.install(app)
    if added == "after":
        app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)

    @outlive.task(timeout=5.0)
    async def save() -> None:
        await asyncio.sleep(1)

    @app.get("/items/{item}")
    async def item(item: str, after: AfterDisconnect) -> StreamingResponse:
        after.add_task(save)

        async def ticks() -> AsyncGenerator[bytes, None]:
            try:
                while True:
                    yield b"tick"
                    await asyncio.sleep(0.1)
            finally:
                save.submit()

        return StreamingResponse(ticks())

    async def main() -> None:
        async with lifespan(app):
            connection = wire(app, "http", "/items/1")
            await asyncio.sleep(1)
            connection.put({"type": "http.disconnect"})
            await asyncio.wait([connection.handler], timeout=2)
            assert connection.handler.done()
            connection.handler.exception()

    run(main())
    labels = {"route": "/items/{item}", "transport": "http", "cause": "client_lost"}
    assert registry.get_sample_value("outlive_disconnects_total", labels) == 1
    assert outlive.counts.outcomes == {**dict.fromkeys(Outcome, 0), Outcome.COMPLETED: 2}


def test_a_long_request_behind_basehttpmiddleware_shows_as_open(
    run: Any, outlive: Outlive, registry: CollectorRegistry, lifespan: Any, wire: Any
) -> None:
    app = FastAPI()
    outlive.install(app)

    @app.middleware("http")
    async def authenticate(request: Request, call_next: Any) -> Any:
        await asyncio.sleep(0)
        return await call_next(request)

    @app.get("/items/{item}")
    async def item(item: str) -> None:
        await asyncio.sleep(10)

    async def main() -> None:
        async with lifespan(app):
            connection = wire(app, "http", "/items/1")
            await asyncio.sleep(5)
            labels = {"route": "/items/{item}", "transport": "http"}
            assert registry.get_sample_value("outlive_connections", labels) == 1
            await connection.handler

    run(main())


# AfterDisconnect


class Ledger:
    """An app whose handlers leave work behind, and the order in which that was done."""

    def __init__(self, outlive: Outlive) -> None:
        self.done: list[str] = []
        self.app = FastAPI()
        outlive.install(self.app)

        @outlive.task(timeout=5.0)
        async def note(what: str) -> None:
            self.done.append(what)

        @outlive.task(timeout=5.0)
        async def fail() -> None:
            raise LookupError

        self.note, self.fail = note, fail


@pytest.fixture
def ledger(outlive: Outlive) -> Ledger:
    return Ledger(outlive)


def test_work_is_done_after_a_normal_end_in_order(ledger: Ledger) -> None:
    @ledger.app.get("/")
    async def root(after: AfterDisconnect) -> None:
        for n in range(5):
            after.add_task(ledger.note, str(n))
        assert ledger.done == []

    with TestClient(ledger.app) as client:
        assert client.get("/").is_success
    assert ledger.done == ["0", "1", "2", "3", "4"]


def test_work_is_done_after_a_websocket_was_closed(ledger: Ledger) -> None:
    @ledger.app.websocket("/")
    async def root(ws: WebSocket, after: AfterDisconnect) -> None:
        after.add_task(ledger.note, "after")
        await ws.accept()
        with pytest.raises(WebSocketDisconnect):
            await ws.receive_text()
        ledger.done.append("disconnect")

    with TestClient(ledger.app) as client, client.websocket_connect("/"):
        pass
    assert ledger.done == ["disconnect", "after"]


def test_work_is_done_although_the_handler_was_cancelled(
    run: Any, ledger: Ledger, lifespan: Any, wire: Any
) -> None:
    @ledger.app.websocket("/")
    async def root(ws: WebSocket, after: AfterDisconnect) -> None:
        after.add_task(ledger.note, "after")
        await asyncio.sleep(60)

    async def main() -> None:
        async with lifespan(ledger.app):
            connection = wire(ledger.app, "websocket", "/")
            await asyncio.sleep(1)
            connection.handler.cancel()
            await asyncio.wait([connection.handler])

    run(main())
    assert ledger.done == ["after"]


@pytest.mark.parametrize("error", [LookupError(), HTTPException(409)])
def test_work_is_done_although_the_handler_raised(ledger: Ledger, error: Exception) -> None:
    @ledger.app.get("/")
    async def root(after: AfterDisconnect) -> None:
        after.add_task(ledger.note, "after")
        raise error

    with TestClient(ledger.app, raise_server_exceptions=False) as client:
        assert client.get("/").status_code in (409, 500)
    assert ledger.done == ["after"]


def test_work_that_fails_stops_none_after_it(ledger: Ledger, outlive: Outlive) -> None:
    @ledger.app.get("/")
    async def root(after: AfterDisconnect) -> None:
        after.add_task(ledger.note, "first")
        after.add_task(ledger.fail)
        after.add_task(ledger.note)  # type: ignore[call-arg]
        after.add_task(ledger.note, "last")

    with TestClient(ledger.app) as client:
        assert client.get("/").is_success
    assert ledger.done == ["first", "last"]
    assert outlive.counts.outcomes[Outcome.FAILED] == 2


def test_a_sync_endpoint_can_leave_work_too(ledger: Ledger) -> None:
    @ledger.app.get("/")
    def root(after: AfterDisconnect) -> None:
        after.add_task(ledger.note, "after")
        ledger.note.submit("at once")

    with TestClient(ledger.app) as client:
        assert client.get("/").is_success
    assert sorted(ledger.done) == ["after", "at once"]


def test_what_is_no_declared_task_is_refused(ledger: Ledger) -> None:
    async def save() -> None: ...

    @ledger.app.get("/")
    async def root(after: AfterDisconnect) -> None:
        with pytest.raises(TypeError, match=r"declared with @outlive\.task"):
            after.add_task(save)  # type: ignore[arg-type]

    with TestClient(ledger.app) as client:
        assert client.get("/").is_success


def test_without_install_the_parameter_says_what_to_do() -> None:
    app = FastAPI()

    @app.get("/")
    async def root(after: AfterDisconnect) -> None: ...

    with TestClient(app) as client, pytest.raises(InstallError, match=r"call outlive\.install\(app\)"):
        client.get("/")


# Pages


def test_metrics_come_in_both_formats(outlive: Outlive) -> None:
    app = FastAPI()
    outlive.install(app)
    with TestClient(app) as client:
        classic = client.get("/metrics")
        assert classic.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "outlive_draining" in {family.name for family in parse_classic(classic.text)}
        accept = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
        openmetrics = client.get("/metrics", headers=accept)
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert "outlive_draining" in {family.name for family in parse_openmetrics(openmetrics.text)}  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        ",;=",
        "text/plain;version=9",
        "application/openmetrics-text",
        "text/html;q=",
        "a/b;escaping=x",
    ],
)
def test_any_accept_header_gets_metrics(outlive: Outlive, accept: str) -> None:
    app = FastAPI()
    outlive.install(app)
    with TestClient(app) as client:
        assert "outlive_draining" in client.get("/metrics", headers={"accept": accept}).text


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_pages_are_to_be_read_only(outlive: Outlive, path: str) -> None:
    app = FastAPI()
    outlive.install(app)
    with TestClient(app) as client:
        assert client.get(path).status_code == 200
        assert client.head(path).status_code == 200
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            refused = client.request(method, path)
            assert refused.status_code == 405
            assert refused.headers["allow"] == "GET, HEAD"


def test_in_a_drain_the_process_is_alive_and_not_ready(
    run: Any, outlive: Outlive, lifespan: Any, wire: Any
) -> None:
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=5.0)
    async def save() -> None:
        await asyncio.sleep(1)

    async def status(path: str) -> int:
        connection = wire(app, "http", path)
        await connection.handler
        return int(connection.status)

    async def main() -> None:
        async with lifespan(app):
            assert await status("/readyz") == 200
            outlive.begin_drain()
            assert await status("/readyz") == 503
            assert await status("/healthz") == 200
            assert save.submit().outcome is None
        assert await status("/readyz") == 503
        assert await status("/healthz") == 200

    run(main())


def test_a_route_that_catches_all_does_not_shadow_the_pages(outlive: Outlive) -> None:
    app = FastAPI()

    @app.get("/{path:path}")
    async def anything(path: str) -> str:
        return "the app's"

    outlive.install(app)
    with TestClient(app) as client:
        assert client.get("/anything").json() == "the app's"
        assert client.get("/healthz").json() == {"alive": True}
        assert "outlive_draining" in client.get("/metrics").text


def test_a_page_can_be_moved_or_left_out(registry: CollectorRegistry) -> None:
    app = FastAPI()
    Outlive(registry=registry, metrics_path="/internal/metrics", readiness_path=None).install(app)
    with TestClient(app) as client:
        assert client.get("/internal/metrics").is_success
        assert client.get("/metrics").status_code == 404
        assert client.get("/readyz").status_code == 404


def test_pages_are_no_connections(outlive: Outlive, registry: CollectorRegistry) -> None:
    app = FastAPI()
    outlive.install(app)
    with TestClient(app) as client:
        client.get("/metrics")
        client.get("/healthz")
    assert not [
        sample
        for family in registry.collect()
        for sample in family.samples
        if sample.name.startswith("outlive_connection") and "route" in sample.labels
    ]


# Without a lifespan, and under TestClient


def test_without_a_lifespan_runs_work_and_one_warning_says_what_is_missing(
    run: Any, outlive: Outlive, wire: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=5.0)
    async def save() -> None:
        await asyncio.sleep(1)

    @app.get("/")
    async def root() -> None:
        await save()

    async def main() -> None:
        for _ in range(3):
            await wire(app, "http", "/").handler

    run(main())
    assert outlive.counts.outcomes[Outcome.COMPLETED] == 3
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["the server runs no lifespan: runs work, but nothing waits for them at the stop"]


def test_without_a_lifespan_each_loop_is_as_good_as_the_first(outlive: Outlive) -> None:
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=5.0)
    async def save() -> None:
        await asyncio.sleep(0)

    @app.get("/")
    async def root() -> None:
        await save()

    client = TestClient(app)
    for completed in (1, 2, 3):
        assert client.get("/").is_success
        assert outlive.counts.outcomes[Outcome.COMPLETED] == completed


def test_under_testclient_the_run_completes_although_the_handler_is_cancelled(outlive: Outlive) -> None:
    saved: list[list[str]] = []
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=5.0)
    async def save(lines: list[str]) -> None:
        await asyncio.sleep(0.05)
        saved.append(lines)

    @app.websocket("/rooms/{room}")
    async def room(ws: WebSocket, room: str) -> None:
        await ws.accept()
        lines: list[str] = []
        try:
            async for line in ws.iter_text():
                lines.append(line)
                await ws.send_text(line)
        finally:
            await save(lines)

    with TestClient(app) as client, client.websocket_connect("/rooms/a") as ws:
        ws.send_text("hello")
        ws.receive_text()
    assert saved == [["hello"]]
    assert outlive.counts.outcomes[Outcome.COMPLETED] == 1
    assert outlive.counts.submitted == 1


def test_without_telemetry_only_the_observers_are_told(
    run: Any, serving: Any, registry: CollectorRegistry, recorder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "outlive")
    outlive = Outlive(registry=registry, observers=[recorder], telemetry=False)

    @outlive.task(timeout=5.0)
    async def save() -> trace.Span:
        return trace.get_current_span()

    async def main() -> None:
        async with serving(outlive):
            assert await save() is trace.INVALID_SPAN

    run(main())
    assert [heard[0] for heard in recorder.of("run_submitted", "run_started", "run_ended")] == [
        "run_submitted",
        "run_started",
        "run_ended",
    ]
    assert list(registry.collect()) == []
    assert [record.getMessage() for record in caplog.records] == ["closed"]
