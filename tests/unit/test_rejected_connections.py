"""Connections over the bound: turned away at once, and counted."""

import asyncio
import logging
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from prometheus_client import CollectorRegistry

from outlive import ConnectionRejection, Outlive
from outlive.errors import DeclarationError

DENIAL: dict[str, Any] = {"extensions": {"websocket.http.response": {}}}


def rejected(registry: CollectorRegistry) -> dict[str, float | None]:
    return {
        str(reason): registry.get_sample_value("outlive_connections_rejected_total", {"reason": reason})
        for reason in ConnectionRejection
    }


def bounded(registry: CollectorRegistry) -> tuple[FastAPI, Outlive, asyncio.Event]:
    """An app for two connections, each until the event."""
    app = FastAPI()
    outlive = Outlive(registry=registry, max_connections=2)
    outlive.install(app)
    end = asyncio.Event()

    @app.get("/")
    async def root() -> None:
        await end.wait()

    @app.websocket("/room")
    async def room(ws: WebSocket) -> None:
        await ws.accept()
        await end.wait()

    return app, outlive, end


def test_what_is_over_the_bound_is_told_to_try_again(
    run: Any, registry: CollectorRegistry, lifespan: Any, wire: Any
) -> None:
    async def main() -> None:
        app, _, end = bounded(registry)
        async with lifespan(app):
            assert rejected(registry) == {"full": 0, "origin": 0}
            inside = [wire(app, "http", "/"), wire(app, "websocket", "/room")]
            await asyncio.sleep(0.01)
            request = wire(app, "http", "/")
            await request.handler
            assert request.status == 503
            denied = wire(app, "websocket", "/room", **DENIAL)
            await denied.handler
            assert [message["type"] for message in denied.sent] == [
                "websocket.http.response.start",
                "websocket.http.response.body",
            ]
            assert denied.sent[0]["status"] == 503
            for message in (request.sent[0], denied.sent[0]):
                assert (b"retry-after", b"5") in message["headers"]
            closed = wire(app, "websocket", "/room")
            await closed.handler
            assert closed.sent == [{"type": "websocket.close", "code": 1013}]
            assert rejected(registry) == {"full": 3, "origin": 0}
            # Its own pages are no connections.
            for path in ("/readyz", "/healthz", "/metrics"):
                page = wire(app, "http", path)
                await page.handler
                assert page.status == 200, path
            end.set()
            await asyncio.gather(*(each.handler for each in inside))
            # There is room again.
            again = wire(app, "http", "/")
            await again.handler
            assert again.status == 200
        ended = {
            (sample.labels["route"], sample.labels["transport"]): sample.value
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "outlive_connection_duration_seconds_count"
        }
        assert ended == {("/", "http"): 2, ("/room", "websocket"): 1}, "who wasn't let in is no connection"

    run(main())


def test_a_burst_is_one_line_in_the_log(
    run: Any, registry: CollectorRegistry, lifespan: Any, wire: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[tuple[str, str, int]]:
        return [
            (record.getMessage(), record.__dict__["reason"], record.__dict__["since_last_line"])
            for record in caplog.records
            if record.levelno == logging.WARNING
        ]

    async def main() -> None:
        app, outlive, end = bounded(registry)
        async with lifespan(app):
            inside = [wire(app, "http", "/") for _ in range(2)]
            await asyncio.sleep(0.01)
            for _ in range(100):
                await wire(app, "http", "/").handler
            outlive.connection_rejected(ConnectionRejection.ORIGIN)
            assert lines() == [
                ("connections rejected: full", "full", 1),
                ("connections rejected: origin", "origin", 1),
            ]
            await asyncio.sleep(10)
            await wire(app, "http", "/").handler
            assert lines()[2:] == [("connections rejected: full", "full", 100)]
            assert rejected(registry) == {"full": 101, "origin": 1}
            end.set()
            await asyncio.gather(*(each.handler for each in inside))

    run(main())


@pytest.mark.parametrize("most", [0, -1, 1.5])
def test_a_bound_that_lets_nobody_in_is_refused(registry: CollectorRegistry, most: Any) -> None:
    with pytest.raises(DeclarationError, match="max_connections must be a whole number of at least 1"):
        Outlive(registry=registry, max_connections=most)
