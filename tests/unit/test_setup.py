"""Telemetry set up from the standard variables, and flushed at the end."""

import asyncio
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import SERVICE_NAME
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

from outlive import Outlive
from outlive.telemetry import setup
from outlive.telemetry.flows import FlowBuffer
from outlive.telemetry.setup import TelemetryError, set_up_tracing


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine's own, and nothing global left behind."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace._TRACER_PROVIDER_SET_ONCE, "_done", False)
    monkeypatch.setattr(setup, "set_global_textmap", lambda _: None)


def exporters(provider: TracerProvider) -> list[BatchSpanProcessor]:
    return [
        processor
        for processor in provider._active_span_processor._span_processors
        if isinstance(processor, BatchSpanProcessor)
    ]


@pytest.fixture
def provider() -> Iterator[list[TracerProvider]]:
    """Those that a test makes, to be shut down after it."""
    made: list[TracerProvider] = []
    yield made
    for one in made:
        one.shutdown()


# The variables


def test_without_an_endpoint_nothing_is_exported_and_nothing_complains(
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider = set_up_tracing("chat")
    provider.get_tracer("test").start_span("work").end()
    assert exporters(provider) == []
    assert caplog.records == []


def test_the_provider_becomes_the_global_one_unless_there_is_one() -> None:
    first = set_up_tracing("chat")
    assert trace.get_tracer_provider() is first
    second = set_up_tracing("chat")
    assert second is not first
    assert trace.get_tracer_provider() is first


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "chat"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=mine,a=b"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b"}, "chat"),
        # The specification: an empty value is the same as none. Compose files make these.
        ({"OTEL_SERVICE_NAME": ""}, "chat"),
    ],
)
def test_the_services_name(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert set_up_tracing("chat").resource.attributes[SERVICE_NAME] == name


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
    ],
)
def test_what_is_not_there_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    variable, value = list(variables.items())[-1]
    with pytest.raises(TelemetryError, match=f"{variable}='{value}'"):
        set_up_tracing("chat")


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_TRACES_EXPORTER": ""},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": ""},
        # The one for traces goes before the one for all signals.
        {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_what_the_specification_allows_is_taken(
    monkeypatch: pytest.MonkeyPatch, provider: list[TracerProvider], variables: dict[str, str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    provider.append(set_up_tracing("chat"))
    assert len(exporters(provider[0])) == 1


def test_exporting_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert exporters(set_up_tracing("chat")) == []


def test_the_sdk_can_be_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    buffer = FlowBuffer(kept=10)
    provider = set_up_tracing("chat", [buffer])
    provider.get_tracer("outlive").start_span("disconnect /a").end()
    assert buffer.latest(10) == []


def test_the_sampler_is_told_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    span = set_up_tracing("chat").get_tracer("test").start_span("work")
    assert not span.is_recording()


def test_a_processor_of_ones_own_hears_every_span() -> None:
    buffer = FlowBuffer(kept=10)
    set_up_tracing("chat", [buffer]).get_tracer("outlive").start_span("disconnect /a").end()
    assert len(buffer.latest(10)) == 1


# To a backend


class Backend(ThreadingHTTPServer):
    """An OTLP receiver."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.received: list[ExportTraceServiceRequest] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def names(self) -> list[str]:
        return [
            span.name
            for request in self.received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert isinstance(self.server, Backend)
        assert self.path == "/v1/traces"
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend
        backend.shutdown()


def app_on(outlive: Outlive) -> FastAPI:
    app = FastAPI(telemetry={"tracing": False})
    outlive.install(app)

    @outlive.task(timeout=0.5)
    async def save() -> None: ...

    @app.get("/")
    async def root() -> None:
        await save()

    return app


def test_spans_are_at_the_backend_when_the_app_has_stopped(
    monkeypatch: pytest.MonkeyPatch,
    provider: list[TracerProvider],
    registry: CollectorRegistry,
    backend: Backend,
    wire: Any,
    lifespan: Any,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", backend.url)
    provider.append(set_up_tracing("chat"))
    app = app_on(Outlive(registry=registry))

    async def main() -> None:
        async with lifespan(app):
            await wire(app, "http", "/").handler

    asyncio.run(main())
    assert backend.names == ["save"]
    (request,) = backend.received
    resource = {one.key: one.value.string_value for one in request.resource_spans[0].resource.attributes}
    assert resource["service.name"] == "chat"
    (span,) = request.resource_spans[0].scope_spans[0].spans
    attributes = {one.key: one.value.string_value for one in span.attributes}
    assert attributes["outlive.outcome"] == "completed"


class Hanging(SpanExporter):
    def __init__(self) -> None:
        self.let_go = threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        self.let_go.wait(5)
        return SpanExportResult.SUCCESS


def test_a_backend_that_hangs_holds_up_the_stop_no_longer_than_its_budget(
    provider: list[TracerProvider],
    registry: CollectorRegistry,
    wire: Any,
    lifespan: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    exporter = Hanging()
    hanging = TracerProvider()
    hanging.add_span_processor(BatchSpanProcessor(exporter))
    provider.append(hanging)
    # A tenth of the drain's time is the flush's.
    app = app_on(Outlive(registry=registry, tracer_provider=hanging, drain_timeout=1.0, cancel_grace=0.1))

    async def main() -> float:
        async with lifespan(app):
            await wire(app, "http", "/").handler
            before = time.monotonic()
        return time.monotonic() - before

    assert asyncio.run(main()) < 0.8
    exporter.let_go.set()
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["telemetry wasn't flushed within 0.1 s"]


class Raising(TracerProvider):
    def force_flush(self, timeout_millis: int = 0) -> bool:
        raise ConnectionRefusedError


def test_a_flush_that_raises_is_logged_and_disturbs_nothing(
    registry: CollectorRegistry, lifespan: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_on(Outlive(registry=registry, tracer_provider=Raising()))

    async def main() -> float:
        async with lifespan(app):
            before = time.monotonic()
        return time.monotonic() - before

    assert asyncio.run(main()) < 0.5
    assert [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_process_without_a_backend_stops_quietly() -> None:
    program = textwrap.dedent(
        """
        from outlive.telemetry.setup import set_up_logging, set_up_tracing

        set_up_logging()
        set_up_tracing("chat").get_tracer("test").start_span("work").end()
        """
    )
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, check=True, env={"PATH": ""}
    )
    assert (told.stdout, told.stderr) == (b"", b"")
