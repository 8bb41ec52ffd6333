"""Metrics: the names, types and labels that dashboards and alerts are built on."""

import asyncio
import os
import platform
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from outlive import Cause, Outcome, Outlive

TOOLS = Path(__file__).parents[2] / ".tools" / "bin"
FAMILIES = {
    "outlive_runs": ("counter", {"task", "outcome"}),
    "outlive_run_duration_seconds": ("histogram", {"task", "outcome"}),
    "outlive_run_wait_seconds": ("histogram", {"task"}),
    "outlive_runs_running": ("gauge", {"task"}),
    "outlive_runs_pending": ("gauge", {"task"}),
    "outlive_runs_stuck": ("gauge", {"task"}),
    "outlive_run_timeout_seconds": ("gauge", {"task"}),
    "outlive_runs_limit": ("gauge", {"kind"}),
    "outlive_absorbed_cancellations": ("counter", {"task"}),
    "outlive_connections_rejected": ("counter", {"reason"}),
    "outlive_connections": ("gauge", {"route", "transport"}),
    "outlive_connection_duration_seconds": ("histogram", {"route", "transport"}),
    "outlive_disconnects": ("counter", {"route", "transport", "cause"}),
    "outlive_disconnect_tail_seconds": ("histogram", {"route", "transport"}),
    "outlive_http_request_duration_seconds": ("histogram", {"route", "method", "status"}),
    "outlive_draining": ("gauge", set()),
    "outlive_drain_duration_seconds": ("gauge", set()),
    "outlive_event_loop_lag_seconds": ("histogram", set()),
}


def families_of(registry: CollectorRegistry) -> list[Metric]:
    """As a scraper that takes OpenMetrics sees the registry."""
    text = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call]
    return list(parse_openmetrics(text))  # type: ignore[no-untyped-call]


def shape(families: Iterable[Metric]) -> dict[str, tuple[str, set[str]]]:
    return {
        family.name: (
            family.type,
            {label for sample in family.samples for label in sample.labels if label != "le"},
        )
        for family in families
        if not family.name.endswith("_created")
    }


class Service:
    """A small app in which everything that is measured happens once."""

    def __init__(self, outlive: Outlive) -> None:
        self.outlive = outlive
        self.app = FastAPI()
        outlive.install(self.app)

        @outlive.task(timeout=5.0)
        async def save() -> None:
            await asyncio.sleep(1)

        @self.app.websocket("/rooms/{room}")
        async def room(ws: WebSocket, room: str) -> None:
            await ws.accept()
            try:
                async for _ in ws.iter_text():
                    pass
            finally:
                save.submit()

        @self.app.get("/items/{item}")
        async def item(item: str) -> StreamingResponse:
            return StreamingResponse(iter(["part"]))

        self.save = save


@pytest.fixture
def scraped(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, lifespan: Any
) -> CollectorRegistry:
    """The registry after a disconnect with a run, a request, an absorbed cancellation, and a drain."""
    service = Service(outlive)

    async def main() -> None:
        async with lifespan(service.app):
            await wire(service.app, "http", "/items/1").handler
            connection = wire(service.app, "websocket", "/rooms/a")
            await asyncio.sleep(1)
            connection.put({"type": "websocket.disconnect", "code": 1000, "reason": ""})
            await connection.handler
            waiting = asyncio.ensure_future(service.save())
            await asyncio.sleep(0.5)
            waiting.cancel()

    run(main())
    return registry


def test_the_classic_format_has_these_names_types_and_labels(scraped: CollectorRegistry) -> None:
    families = shape(parse_classic(generate_latest(scraped).decode()))
    assert families == {**FAMILIES, "outlive_build_info": ("gauge", {"version", "python"})}


def test_openmetrics_has_these_names_types_and_labels(scraped: CollectorRegistry) -> None:
    families = shape(families_of(scraped))
    assert families == {**FAMILIES, "outlive_build": ("info", {"version", "python"})}


def test_the_values_tell_what_happened(scraped: CollectorRegistry) -> None:
    def value(name: str, **labels: str) -> float | None:
        return scraped.get_sample_value(name, labels)

    room = {"route": "/rooms/{room}", "transport": "websocket"}
    assert value("outlive_runs_total", task="save", outcome="completed") == 2
    assert value("outlive_run_duration_seconds_sum", task="save", outcome="completed") == pytest.approx(2)
    assert value("outlive_run_wait_seconds_count", task="save") == 2
    assert value("outlive_absorbed_cancellations_total", task="save") == 1
    assert value("outlive_run_timeout_seconds", task="save") == 5
    assert value("outlive_runs_limit", kind="running") == 1_000
    assert value("outlive_runs_limit", kind="pending") == 10_000
    assert value("outlive_runs_running", task="save") == 0
    assert value("outlive_connections", **room) == 0
    assert value("outlive_connection_duration_seconds_sum", **room) == pytest.approx(1)
    assert value("outlive_disconnects_total", **room, cause="client_closed") == 1
    assert value("outlive_disconnect_tail_seconds_count", **room) == 1
    assert value("outlive_disconnect_tail_seconds_sum", **room) == pytest.approx(1)
    assert value("outlive_draining") == 0
    assert value("outlive_drain_duration_seconds") == pytest.approx(0.5)
    assert value("outlive_build_info", version="0.1.0", python=platform.python_version()) == 1


def test_every_outcome_of_a_task_is_at_zero_from_its_declaration(
    outlive: Outlive, registry: CollectorRegistry
) -> None:
    @outlive.task(timeout=5.0)
    async def save() -> None: ...

    for outcome in Outcome:
        labels = {"task": "save", "outcome": str(outcome)}
        assert registry.get_sample_value("outlive_runs_total", labels) == 0
        assert registry.get_sample_value("outlive_run_duration_seconds_count", labels) == 0
    for name in (
        "outlive_run_wait_seconds_count",
        "outlive_runs_running",
        "outlive_runs_pending",
        "outlive_runs_stuck",
        "outlive_absorbed_cancellations_total",
    ):
        assert registry.get_sample_value(name, {"task": "save"}) == 0


def test_every_cause_is_at_zero_from_a_routes_first_connection(scraped: CollectorRegistry) -> None:
    for cause in Cause:
        labels = {"route": "/items/{item}", "transport": "http", "cause": str(cause)}
        assert scraped.get_sample_value("outlive_disconnects_total", labels) == 0


def test_gauges_follow_the_runs(run: Any, registry: CollectorRegistry, lifespan: Any) -> None:
    outlive = Outlive(registry=registry, max_running=1)
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=10.0)
    async def save() -> None:
        await asyncio.sleep(1)

    @outlive.task(timeout=1.0)
    async def hang() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                continue

    def gauges(task: str) -> list[float | None]:
        return [
            registry.get_sample_value(f"outlive_runs_{kind}", {"task": task})
            for kind in ("running", "pending", "stuck")
        ]

    async def main() -> None:
        async with lifespan(app):
            for _ in range(3):
                save.submit()
            assert gauges("save") == [1, 2, 0]
            await asyncio.sleep(1.5)
            assert gauges("save") == [1, 1, 0]
            await asyncio.sleep(2)
            assert gauges("save") == [0, 0, 0]
            hang.submit()
            await asyncio.sleep(2.5)
            assert gauges("hang") == [0, 0, 1]
            assert registry.get_sample_value("outlive_draining") == 0
            outlive.begin_drain()
            assert registry.get_sample_value("outlive_draining") == 1

    run(main())


def test_a_run_that_never_started_leaves_no_duration(
    run: Any, registry: CollectorRegistry, lifespan: Any
) -> None:
    outlive = Outlive(registry=registry, max_running=1, max_pending=1)
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=10.0, max_wait=1.0)
    async def save() -> None:
        await asyncio.sleep(5)

    async def main() -> None:
        async with lifespan(app):
            runs = [save.submit() for _ in range(3)]
            await asyncio.sleep(2)
            assert [run.outcome for run in runs] == [None, Outcome.TIMED_OUT, Outcome.REJECTED]

    run(main())
    for outcome, runs in (("completed", 1), ("timed_out", 0), ("rejected", 0)):
        labels = {"task": "save", "outcome": outcome}
        assert registry.get_sample_value("outlive_runs_total", labels) == 1
        assert registry.get_sample_value("outlive_run_duration_seconds_count", labels) == runs
    assert registry.get_sample_value("outlive_runs_pending", {"task": "save"}) == 0


# Exemplars


def exemplars(registry: CollectorRegistry) -> dict[str, dict[str, str]]:
    return {
        family.name: dict(sample.exemplar.labels)
        for family in families_of(registry)
        for sample in family.samples
        if sample.exemplar is not None
    }


def traced(run: Any, registry: CollectorRegistry, wire: Any, provider: TracerProvider | None) -> None:
    service = Service(Outlive(registry=registry, tracer_provider=provider))

    async def main() -> None:
        with trace.get_tracer("test", tracer_provider=provider).start_as_current_span("GET"):
            await wire(service.app, "http", "/items/1").handler
        connection = wire(service.app, "websocket", "/rooms/a")
        connection.put({"type": "websocket.disconnect", "code": 1000, "reason": ""})
        await connection.handler
        await asyncio.sleep(2)

    run(main())


def test_exemplars_lead_to_the_spans(run: Any, registry: CollectorRegistry, wire: Any) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traced(run, registry, wire, provider)
    spans = {
        span.name: {
            "trace_id": trace.format_trace_id(span.context.trace_id),
            "span_id": trace.format_span_id(span.context.span_id),
        }
        for span in exporter.get_finished_spans()
        if span.context is not None
    }
    assert exemplars(registry) == {
        "outlive_run_duration_seconds": spans["save"],
        "outlive_disconnect_tail_seconds": spans["disconnect /rooms/{room}"],
        "outlive_http_request_duration_seconds": spans["GET"],
    }


def test_there_are_no_exemplars_of_what_is_not_sampled(
    run: Any, registry: CollectorRegistry, wire: Any
) -> None:
    traced(run, registry, wire, TracerProvider(sampler=ALWAYS_OFF))
    assert exemplars(registry) == {}


def test_there_are_no_exemplars_without_an_sdk(run: Any, registry: CollectorRegistry, wire: Any) -> None:
    traced(run, registry, wire, None)
    assert exemplars(registry) == {}


# One registry, many Outlives


def test_two_outlives_share_one_registry(run: Any, registry: CollectorRegistry, wire: Any) -> None:
    services = [Service(Outlive(registry=registry)) for _ in range(2)]

    async def main() -> None:
        for service in services:
            connection = wire(service.app, "websocket", "/rooms/a")
            connection.put({"type": "websocket.disconnect", "code": 1000, "reason": ""})
            await connection.handler
        await asyncio.sleep(2)

    run(main())
    labels = {"task": "save", "outcome": "completed"}
    assert registry.get_sample_value("outlive_runs_total", labels) == 2


# The event loop's lag


def test_the_event_loops_lag_is_measured_while_the_app_is_open(
    run: Any, outlive: Outlive, registry: CollectorRegistry, lifespan: Any
) -> None:
    app = FastAPI()
    outlive.install(app)

    def looks() -> float:
        return registry.get_sample_value("outlive_event_loop_lag_seconds_count") or 0

    async def main() -> None:
        async with lifespan(app):
            await asyncio.sleep(10)
            assert looks() == pytest.approx(40, abs=1)
            assert registry.get_sample_value("outlive_event_loop_lag_seconds_sum") == pytest.approx(
                0, abs=1e-3
            )
        after = looks()
        await asyncio.sleep(10)
        assert looks() == after

    run(main())


def test_a_callback_that_blocks_shows_as_lag(
    run: Any, outlive: Outlive, registry: CollectorRegistry, lifespan: Any
) -> None:
    app = FastAPI()
    outlive.install(app)

    async def main() -> None:
        async with lifespan(app):
            loop: Any = asyncio.get_running_loop()
            await asyncio.sleep(1.1)
            loop._jumping.now += 2
            await asyncio.sleep(0.1)

    run(main())
    assert registry.get_sample_value("outlive_event_loop_lag_seconds_sum") == pytest.approx(1.85, abs=0.1)


# Several workers


WORKER = textwrap.dedent(
    """
    import asyncio, sys
    from fastapi import FastAPI
    from prometheus_client import CollectorRegistry
    from outlive import Outlive

    outlive = Outlive(max_running=10, registry=CollectorRegistry())
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=5.0)
    async def save() -> None: ...

    @app.get("/items/{item}")
    async def item(item: str) -> None:
        await save()

    async def request(path):
        sent, received = [], [{"type": "http.request"}]
        scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "query_string": b"", "headers": []}
        async def receive():
            return received.pop() if received else await asyncio.Future()
        async def send(message):
            sent.append(message)
        await app(scope, receive, send)
        return b"".join(message.get("body", b"") for message in sent).decode()

    async def main():
        async with app.router.lifespan_context(app):
            for _ in range(int(sys.argv[1])):
                await request("/items/1")
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            print(await request("/metrics"), flush=True)

    asyncio.run(main())
    """
)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two that share their metrics; they have served 2 requests and 3, and end when they are asked for the metrics."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(runs)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for runs in (2, 3)
    ]
    try:
        for worker in started:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.communicate()


def test_the_metrics_of_several_workers_are_added_up(workers: list[subprocess.Popen[str]]) -> None:
    text, errors = workers[0].communicate("\n", timeout=20)
    _, other_errors = workers[1].communicate("\n", timeout=20)
    assert not errors
    assert not other_errors
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse_classic(text)
        for sample in family.samples
    }
    task = ("task", "save")
    assert samples["outlive_runs_total", ("outcome", "completed"), task] == 5
    assert samples["outlive_runs_total", ("outcome", "failed"), task] == 0
    assert samples["outlive_run_duration_seconds_count", ("outcome", "completed"), task] == 5
    request = (("method", "GET"), ("route", "/items/{item}"), ("status", "200"))
    assert samples["outlive_http_request_duration_seconds_count", *request] == 5
    # So many runs may execute in all, but each may still take no longer than declared.
    assert samples["outlive_runs_limit", ("kind", "running")] == 20
    assert samples["outlive_run_timeout_seconds", task] == 5
    assert samples["outlive_draining",] == 0
    build = (("python", platform.python_version()), ("version", "0.1.0"))
    assert samples["outlive_build_info", *build] == 1


@pytest.mark.parametrize("accept", ["", "text/plain;version=1.0.0;escaping=allow-utf-8"])
def test_promtool_has_no_complaint(
    run: Any, outlive: Outlive, scraped: CollectorRegistry, wire: Any, accept: str
) -> None:
    promtool = shutil.which("promtool", path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    if promtool is None:
        message = "promtool is not installed: run tools/install"
        if os.environ.get("OUTLIVE_REQUIRE_TOOLS"):
            pytest.fail(message)
        pytest.skip(message)
    app = FastAPI()
    Outlive(registry=scraped).install(app)
    bodies: list[bytes] = []

    async def main() -> None:
        connection = wire(app, "http", "/metrics", headers=[(b"accept", accept.encode())])
        await connection.handler
        bodies.append(connection.body)

    run(main())
    told = subprocess.run([promtool, "check", "metrics"], input=bodies[0], capture_output=True, check=False)
    assert (told.returncode, told.stderr.decode(), told.stdout.decode()) == (0, "", "")
