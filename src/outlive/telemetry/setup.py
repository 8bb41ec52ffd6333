"""Telemetry set up as a service wants it, from the standard `OTEL_*` variables. Needs the extra `telemetry`."""

import logging
import os
import sys
from collections.abc import Iterable
from typing import Any, Literal

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import set_global_textmap
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from structlog.types import EventDict, Processor

from outlive.errors import OutliveError
from outlive.telemetry.lines import BackgroundLines
from outlive.telemetry.propagation import LinkRemote, UntrustedTraceContext
from outlive.telemetry.tracing import ids


class TelemetryError(OutliveError):
    """An `OTEL_*` variable asks for something that isn't here."""


def set_up_tracing(
    service_name: str, processors: Iterable[SpanProcessor] = (), *, trust_clients: bool = False
) -> TracerProvider:
    """Make a tracer provider, and make it the global one unless there is one already.

    `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_SDK_DISABLED` and the `OTEL_BSP_*` and
    `OTEL_EXPORTER_OTLP_*` variables hold as OpenTelemetry's specification of environment variables says, with one
    difference: without an endpoint nothing is exported, instead of to localhost.

    Parameters:
        service_name: the name to go by where `OTEL_SERVICE_NAME` doesn't tell another.
        processors: further span processors, such as a `FlowBuffer`.
        trust_clients: continue the traces that clients tell, instead of starting new ones that link to them; for
            a service that only your own services can reach.

    Raises:
        TelemetryError: `OTEL_TRACES_EXPORTER` or `OTEL_EXPORTER_OTLP_PROTOCOL` names what this set-up doesn't have.
    """
    resource = Resource.create()
    if not _variable("OTEL_SERVICE_NAME") and "service.name=" not in _variable("OTEL_RESOURCE_ATTRIBUTES"):
        resource = resource.merge(Resource({SERVICE_NAME: service_name}))
    # Not at exit: the drain flushes what there is, within its budget, and an exit must not wait for a dead backend.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    if not trust_clients:
        set_global_textmap(UntrustedTraceContext())
        provider.add_span_processor(LinkRemote())
    for processor in processors:
        provider.add_span_processor(processor)
    exporter = _exporter()
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(provider)
    return provider


def _variable(*names: str) -> str:
    # The specification: an empty value is the same as none.
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _exporter() -> SpanExporter | None:
    match _variable("OTEL_TRACES_EXPORTER").lower():
        case "none":
            return None
        case "console":
            return ConsoleSpanExporter(out=sys.stderr)
        case "otlp" | "":
            pass
        case unknown:
            raise TelemetryError(
                f"OTEL_TRACES_EXPORTER={unknown!r}: this service has 'otlp', 'console' and 'none'"
            )
    if not _variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        return None
    # The one for traces goes before the one for all signals.
    names = [
        name
        for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        if _variable(name)
    ]
    if names and _variable(names[0]) != "http/protobuf":
        raise TelemetryError(
            f"{names[0]}={_variable(names[0])!r}: this service speaks 'http/protobuf' (port 4318, as a rule)"
        )
    return OTLPSpanExporter()


def set_up_logging(
    style: Literal["auto", "json", "console"] = "auto", level: str = "INFO", stream: Any = None
) -> None:
    """Send all logging of the process to one stream: JSON lines, or colours for a person at a terminal.

    Every line has the `trace_id` and `span_id` of the span that it belongs to, as far as there is one. Logging never
    waits for whoever reads: a thread writes, and what doesn't fit in its queue is dropped and counted (see
    `BackgroundLines`).

    Parameters:
        style: "auto" is "console" on a terminal and "json" elsewhere.
        level: of the root logger, by name.
        stream: standard output by default.
    """
    stream = sys.stdout if stream is None else stream
    readable = style == "console" or (style == "auto" and stream.isatty())
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if readable else "iso", utc=not readable),
        _add_current_span,
    ]
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
        if readable
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    handler = BackgroundLines(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for chatty in ("httpx", "httpcore", "uvicorn.error"):
        # At level info, a line for each call or WebSocket with the whole URL, its query string included.
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before[:3],
            *before[4:],
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _add_current_span(_logger: Any, _method: str, event: EventDict) -> EventDict:
    if "trace_id" not in event:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            event.update(ids(context))
    return event
