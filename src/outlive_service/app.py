"""The service: rooms, completions and exports on one FastAPI app."""

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import httpx
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.trace import Span, TracerProvider
from prometheus_client import REGISTRY, CollectorRegistry, write_to_textfile
from starlette.types import Scope

from outlive import ConnectionRejection, Observer, Outlive
from outlive.live import LivePage
from outlive.telemetry.flows import FlowBuffer
from outlive.telemetry.setup import set_up_logging, set_up_tracing
from outlive_service.client import Client
from outlive_service.completions import completions_router
from outlive_service.exports import exports_router
from outlive_service.origins import KnownOrigins
from outlive_service.refusals import REFUSALS, refuse
from outlive_service.rooms import rooms_router
from outlive_service.settings import Settings, load_settings
from outlive_service.store import Store

logger = logging.getLogger("outlive_service")

MAX_BODY = 256_000
"""Bytes of a request's body."""


def without_query(span: Span, _scope: Scope) -> None:
    """Take the query string out of a server span: it holds what users send, and telemetry holds no payload."""
    url = getattr(span, "attributes", {}).get("http.url")
    if isinstance(url, str):
        span.set_attribute("http.url", url.partition("?")[0])


class FinalMetrics(Observer):
    """Writes the metrics when the process has closed: its last seconds are never scraped."""

    def __init__(self, file: Path, registry: CollectorRegistry) -> None:
        self._file = file
        self._registry = registry

    def closed(self) -> None:
        """Write the file, all or nothing."""
        write_to_textfile(str(self._file), self._registry)


def service(settings: Settings | None = None) -> FastAPI:
    """Set up the process's logging and tracing, and build the service.

    Parameters:
        settings: by default read from the environment.
    """
    settings = settings or load_settings(Settings)
    set_up_logging(settings.log_format, settings.log_level.upper())
    flows = FlowBuffer(settings.flows_kept) if settings.shows_live else None
    provider = set_up_tracing(
        "outlive-service", [flows] if flows else [], trust_clients=settings.trust_clients
    )
    app = create_app(settings, tracer_provider=provider, flows=flows)
    if settings.shows_live:
        logger.info("live page", extra={"path": settings.live_path})
    return app


def create_app(
    settings: Settings | None = None,
    *,
    registry: CollectorRegistry = REGISTRY,
    tracer_provider: TracerProvider | None = None,
    flows: FlowBuffer | None = None,
) -> FastAPI:
    """Build the service, touching nothing of the process.

    Parameters:
        settings: by default read from the environment.
        registry: where the metrics are.
        tracer_provider: by default OpenTelemetry's global one.
        flows: the last disconnect flows, for the live page.
    """
    settings = settings or load_settings(Settings)
    on_app = settings.pages_port is None
    outlive = Outlive(
        drain_timeout=settings.drain_timeout,
        cancel_grace=settings.cancel_grace,
        max_running=settings.max_running,
        max_pending=settings.max_pending,
        max_connections=settings.max_connections,
        server_grace=settings.shutdown_delay + (settings.graceful_timeout or 0.0),
        stop_grace=settings.stop_grace,
        registry=registry,
        tracer_provider=tracer_provider,
        observers=[FinalMetrics(settings.final_metrics_file, registry)]
        if settings.final_metrics_file
        else [],
        live=LivePage(
            flows,
            path=settings.live_path,
            viewers=settings.live_viewers,
            jaeger_ui_url=settings.jaeger_ui_url,
        )
        if settings.shows_live
        else None,
        token=settings.pages_token.get_secret_value() if settings.pages_token else None,
        protect_health=settings.pages_protect_health,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Outlive drains before this goes on after its yield: the runs still have the database and the client.
        timeout = httpx.Timeout(
            connect=settings.http_connect_timeout,
            read=settings.http_read_timeout,
            write=settings.http_write_timeout,
            pool=settings.http_pool_timeout,
        )
        limits = httpx.Limits(
            max_connections=settings.http_max_connections,
            max_keepalive_connections=settings.http_max_keepalive,
            keepalive_expiry=settings.http_keepalive,
        )
        async with Client(timeout=timeout, limits=limits) as client:
            HTTPXClientInstrumentor.instrument_client(client, tracer_provider=tracer_provider)
            app.state.client = client
            app.state.store = store = Store(settings.database_url, pool=settings.database_pool)
            try:
                await store.create()
                yield
            finally:
                await store.close()

    app = FastAPI(title="Outlive's service", lifespan=lifespan, max_body_size=MAX_BODY, responses=REFUSALS)
    app.add_exception_handler(RequestValidationError, refuse)
    app.add_middleware(
        KnownOrigins,
        allowed=settings.allowed_origins,
        rejected=lambda: outlive.connection_rejected(ConnectionRejection.ORIGIN),
    )
    app.include_router(rooms_router(outlive, settings))
    app.include_router(completions_router(outlive, settings))
    app.include_router(exports_router(outlive, settings))

    @app.get("/")
    async def contents() -> dict[str, object]:
        """Tell what is here."""
        return {
            "outlive": version("outlive"),
            "rooms": "WebSocket /rooms/{room}?user=NAME",
            "completions": "POST /completions",
            "exports": "GET /exports/usage.csv?user=NAME",
            "api": "/docs",
            "metrics": "/metrics",
            "alive": "/healthz",
            "ready": "/readyz",
            **({"live": settings.live_path} if settings.shows_live and on_app else {}),
        }

    outlive.install(app, pages=on_app)
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=tracer_provider,
        excluded_urls=f"^https?://[^/]+(/metrics|/healthz|/readyz|{re.escape(settings.live_path)}.*)$",
        exclude_spans=["receive", "send"],
        server_request_hook=without_query,
    )
    return app
