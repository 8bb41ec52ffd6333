"""One small app in several dresses, each served by uvicorn in a process of its own."""

import asyncio
import logging
import socket
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry
from starlette.websockets import WebSocketDisconnect

from outlive import Outlive

PARTS = 50
"""Parts of a stream."""
PLAIN = "plain"
SPAN = "plain + one span"
OUTLIVE = "Outlive + one span"
ALONE = "Outlive"
BOTH_OWN = "Outlive + FastAPI's own span"
NATIVE = "FastAPI's own telemetry"
CONTRIB = "contrib's defaults"
DRESSES = {
    PLAIN: "telemetry",
    ALONE: "the server's span of the connection; all that Outlive itself tells is on",
    SPAN: "metrics; the span is contrib's, without one for each message",
    OUTLIVE: "nothing: it is both, as in the template",
    BOTH_OWN: "nothing",
    NATIVE: "runs, disconnects, exemplars",
    CONTRIB: "runs, disconnects, exemplars",
}
"""What each leaves out."""


class Nowhere(SpanExporter):
    """Takes finished spans in batches, as an exporter does, and sends them nowhere."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002
        """Drop them."""
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """There is nothing to close."""


def tracing() -> TracerProvider:
    """Every trace is kept, and goes to an exporter that costs nothing itself."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider


def application(dress: str) -> FastAPI:
    """The app, with that telemetry."""
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    own: dict[str, Any] = {"tracing": False, "metrics": False, "logs": False}
    provider = tracing()
    if dress == NATIVE:
        own = {"tracer_provider": provider, "meter_provider": meters}
    elif dress == BOTH_OWN:
        own |= {"tracing": True, "tracer_provider": provider}
    app = FastAPI(telemetry=own)  # type: ignore[arg-type]
    add_routes(app)
    if dress in (ALONE, OUTLIVE, BOTH_OWN):
        Outlive(registry=CollectorRegistry(), tracer_provider=provider).install(app)
    if dress in (SPAN, OUTLIVE):
        _instrument(app, tracer_provider=provider, exclude_spans=["receive", "send"])
    if dress == CONTRIB:
        _instrument(app, tracer_provider=provider, meter_provider=meters)
    return app


def _instrument(app: FastAPI, **settings: Any) -> None:
    FastAPIInstrumentor.instrument_app(app, **settings)


def add_routes(app: FastAPI) -> None:
    """An echo, an item, a stream, and how much CPU time the process has used."""

    @app.websocket("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_text(await ws.receive_text())
        except WebSocketDisconnect:
            pass

    @app.get("/items/{item}")
    async def item(item: str) -> dict[str, str]:
        return {"item": item}

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncGenerator[str]:
            for _ in range(PARTS):
                await asyncio.sleep(0)
                yield "data: a part of a text\n\n"

        return StreamingResponse(parts(), media_type="text/event-stream")

    @app.get("/cpu")
    async def cpu() -> float:
        return time.process_time()


def serve(app: FastAPI) -> None:
    """Serve it on a free port of the loopback, and say on which."""
    for name in ("outlive", "opentelemetry"):  # contrib's defaults make more spans than the queue takes
        logging.getLogger(name).setLevel(logging.ERROR)
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        print(listening.getsockname()[1], flush=True)
        # No pings: the client has no answer to them, and they come after 20 s of a measurement that takes longer.
        config = uvicorn.Config(app, log_level="error", access_log=False, ws_ping_interval=None)
        uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    serve(application(sys.argv[1]))
