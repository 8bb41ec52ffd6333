"""The last disconnect flows in memory: bounded, in order, and readable."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.trace import set_span_in_context
from prometheus_client import CollectorRegistry

from outlive import Outlive
from outlive.telemetry import flows
from outlive.telemetry.flows import FlowBuffer, flows_page


def tracer_of(buffer: FlowBuffer, name: str = "outlive") -> Any:
    provider = TracerProvider()
    provider.add_span_processor(buffer)
    return provider.get_tracer(name)


def flow(tracer: Tracer, name: str = "disconnect /a", *children: str) -> None:
    root = tracer.start_span(name, attributes={"http.route": name.removeprefix("disconnect ")})
    for child in children:
        tracer.start_span(child, set_span_in_context(root)).end()
    root.end()


def test_the_newest_flows_come_first_and_the_oldest_are_forgotten() -> None:
    buffer = FlowBuffer(kept=3)
    tracer = tracer_of(buffer)
    for n in range(5):
        flow(tracer, f"disconnect /{n}")
    assert [kept["route"] for kept in buffer.latest(10)] == ["/4", "/3", "/2"]
    assert [kept["route"] for kept in buffer.latest(1)] == ["/4"]
    assert buffer.latest(0) == []


def test_only_flows_are_kept() -> None:
    buffer = FlowBuffer(kept=10)
    flow(tracer_of(buffer), "GET /", "save")
    flow(tracer_of(buffer, "another library"), "disconnect /a")
    assert buffer.latest(10) == []
    assert not buffer._open


def test_a_flow_has_all_spans_of_its_trace_in_the_order_they_began() -> None:
    buffer = FlowBuffer(kept=10)
    flow(tracer_of(buffer), "disconnect /a", "save", "notify")
    (kept,) = buffer.latest(1)
    assert [span["name"] for span in kept["spans"]] == ["disconnect /a", "save", "notify"]
    root = kept["spans"][0]["span_id"]
    assert [span["parent_id"] for span in kept["spans"]] == [None, root, root]


def test_an_unfinished_flow_is_not_told() -> None:
    buffer = FlowBuffer(kept=10)
    root = tracer_of(buffer).start_span("disconnect /a")
    assert buffer.latest(10) == []
    root.end()
    assert len(buffer.latest(10)) == 1


def test_a_span_that_comes_after_its_flow_is_dropped() -> None:
    buffer = FlowBuffer(kept=10)
    tracer = tracer_of(buffer)
    root = tracer.start_span("disconnect /a")
    late = tracer.start_span("late", set_span_in_context(root))
    root.end()
    late.end()
    tracer.start_span("later", set_span_in_context(root)).end()
    (kept,) = buffer.latest(1)
    assert [span["name"] for span in kept["spans"]] == ["disconnect /a"]
    assert not buffer._open


def test_the_spans_of_one_flow_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "MOST_SPANS", 5)
    buffer = FlowBuffer(kept=10)
    flow(tracer_of(buffer), "disconnect /a", *"abcdefghi")
    (kept,) = buffer.latest(1)
    assert [span["name"] for span in kept["spans"]] == ["disconnect /a", *"abcde"]


def test_the_unfinished_flows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "MOST_OPEN", 3)
    buffer = FlowBuffer(kept=10)
    tracer = tracer_of(buffer)
    roots = [tracer.start_span(f"disconnect /{n}", attributes={"http.route": f"/{n}"}) for n in range(5)]
    assert len(buffer._open) == 3
    for root in roots:
        root.end()
    assert [kept["route"] for kept in buffer.latest(10)] == ["/4", "/3", "/2"]


@pytest.fixture
def page(run: Any, wire: Any) -> Any:
    buffer = FlowBuffer(kept=100)
    tracer = tracer_of(buffer)
    for n in range(50):
        flow(tracer, f"disconnect /{n}", "save")

    def ask(query: bytes) -> list[dict[str, Any]]:
        async def main() -> list[dict[str, Any]]:
            connection = wire(flows_page(buffer), "http", "/flows", query=query)
            await connection.handler
            assert connection.status == 200
            told = json.loads(connection.body)
            assert set(told) == {"flows"}
            return list(told["flows"])

        return list(run(main()))

    return ask


@pytest.mark.parametrize(
    ("query", "flows"),
    [
        (b"", 20),
        (b"most=5", 5),
        (b"most=0", 0),
        (b"most=99999", 50),
        (b"most=999999999999999999999999", 20),
        (b"most=-1", 20),
        (b"most=1e3", 20),
        (b"most=", 20),
        (b"most=%D9%A3", 20),
        (b"most=%C2%B2", 20),
        (b"most=%00", 20),
        (b"most=%ff", 20),
        (b"most=3&most=4", 4),
        (b"most[]=3", 20),
        (b"&&&=", 20),
    ],
)
def test_the_page_bears_with_any_query(page: Any, query: bytes, flows: int) -> None:
    assert len(page(query)) == flows


def test_an_attribute_that_json_cannot_hold_spoils_nothing(run: Any, wire: Any) -> None:
    buffer = FlowBuffer(kept=1)
    tracer_of(buffer).start_span("disconnect /a", attributes={"ratio": float("nan")}).end()

    async def main() -> None:
        connection = wire(flows_page(buffer), "http", "/flows")
        await connection.handler
        assert connection.status == 200

    run(main())


def test_a_disconnect_on_the_page(run: Any, registry: CollectorRegistry, wire: Any, lifespan: Any) -> None:
    buffer = FlowBuffer(kept=10)
    provider = TracerProvider()
    provider.add_span_processor(buffer)
    outlive = Outlive(registry=registry, tracer_provider=provider, pages={"/flows": flows_page(buffer)})
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=5.0)
    async def save() -> None:
        raise LookupError

    @app.websocket("/rooms/{room}")
    async def room(ws: WebSocket, room: str) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            pass
        save.submit()

    async def main() -> None:
        async with lifespan(app):
            connection = wire(app, "websocket", "/rooms/a")
            connection.put({"type": "websocket.disconnect", "code": 1000, "reason": ""})
            await connection.handler
            await asyncio.sleep(1)
            page = wire(app, "http", "/flows")
            await page.handler
            (told,) = json.loads(page.body)["flows"]
        assert (told["route"], told["transport"], told["cause"]) == (
            "/rooms/{room}",
            "websocket",
            "client_closed",
        )
        root, run = told["spans"]
        assert (root["name"], root["start"], root["error"]) == ("disconnect /rooms/{room}", 0, False)
        assert (run["name"], run["error"]) == ("save", True)
        assert run["parent_id"] == root["span_id"]
        assert run["attributes"]["outlive.outcome"] == "failed"

    run(main())
