import json
from itertools import pairwise
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from websockets.asyncio.client import connect

from outlive_service.app import create_app
from outlive_service.partner import create_partner
from outlive_service.settings import PartnerSettings, Settings

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]


async def test_the_first_page_tells_what_is_here(service: Any) -> None:
    service.start()
    async with httpx.AsyncClient(base_url=service.url) as client:
        assert "/rooms/" in (await client.get("/")).json()["rooms"]
        for path in ("/metrics", "/healthz", "/readyz", "/docs"):
            assert (await client.get(path)).status_code == 200, path


async def test_a_body_has_bounds(service: Any) -> None:
    service.start()
    body = {"user": "ann", "prompt": "x" * 300_000}
    async with httpx.AsyncClient() as client:
        assert (await client.post(f"{service.url}/completions", json=body)).status_code == 413


async def test_the_openapi_document_tells_of_every_answer(service: Any) -> None:
    service.start(max_connections=2)
    url = service.url
    json_type = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=url) as client:
        document = (await client.get("/openapi.json")).json()

        async def answer(method: str, path: str, **more: Any) -> tuple[int, str]:
            response = await client.request(method, path, **more)
            told = document["paths"][path][method.lower()]["responses"][str(response.status_code)]
            kind = response.headers["content-type"].partition(";")[0]
            assert kind in told["content"], f"{kind} is not among {told}"
            assert {name.lower() for name in told.get("headers", {})} <= set(response.headers)
            return response.status_code, kind

        body, text = {"user": "ann", "prompt": "why?", "max_tokens": 2}, "text/plain"
        assert await answer("POST", "/completions", json=body) == (200, "text/event-stream")
        assert await answer("POST", "/completions", json={}) == (422, "application/json")
        assert await answer("POST", "/completions", content=b"\xff", headers=json_type) == (
            400,
            json_type["content-type"],
        )
        assert await answer("GET", "/exports/usage.csv", params={"user": "ann"}) == (200, "text/csv")
        for method, path in (("POST", "/completions"), ("GET", "/exports/usage.csv"), ("GET", "/")):
            assert await answer(method, path, content=b"x" * 300_000) == (413, text)
        address = f"{url.replace('http', 'ws')}/rooms/lobby?user=ann"
        async with connect(address), connect(address):
            for method, path in (("POST", "/completions"), ("GET", "/exports/usage.csv"), ("GET", "/")):
                assert await answer(method, path) == (503, text)


async def test_an_app_can_be_started_again(database: str) -> None:
    registry = CollectorRegistry()
    settings = Settings(database_url=database, departure_grace=0, partner_url="http://127.0.0.1:9")
    app = create_app(settings, registry=registry)
    for _ in range(2):
        with TestClient(app) as client, client.websocket_connect("/rooms/lobby?user=ann") as ann:
            assert ann.receive_json()["type"] == "welcome"
    saved = {"task": "save_transcript", "outcome": "completed"}
    assert registry.get_sample_value("outlive_runs_total", saved) == 2


async def test_the_partners_span_is_in_the_run_s_trace_and_health_pages_make_none(
    service: Any, serve: Any
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    partner = serve(create_partner(PartnerSettings(), tracer_provider=provider))
    service.start(tracer_provider=provider, partner_url=partner)
    async with httpx.AsyncClient(base_url=service.url) as client:
        for path in ("/metrics", "/healthz", "/readyz"):
            await client.get(path)
        await client.get(f"{partner}/records")
    assert exporter.get_finished_spans() == ()
    async with connect(f"{service.url.replace('http', 'ws')}/rooms/lobby?user=ann") as ann:
        assert json.loads(await ann.recv())["type"] == "welcome"
        await ann.send("a secret line")
        await ann.recv()
    await service.stop()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    chain = ["POST /notices", "POST", "notify_partner", "disconnect /rooms/{room}"]
    for child, parent in pairwise(chain):
        link = spans[child].parent
        assert link is not None, child
        assert link.span_id == spans[parent].context.span_id, (child, parent)
    assert spans["disconnect /rooms/{room}"].parent is None
    assert len(spans) == 7, "the connection, its disconnect, three runs, and the notice on both sides"
    assert "a secret line" not in "".join(span.to_json() for span in spans.values())
