"""The last disconnect flows in memory: bounded, in order, and readable."""

from typing import Any

import pytest
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.trace import set_span_in_context

from outlive.telemetry import flows
from outlive.telemetry.flows import FlowBuffer


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


def test_a_flow_is_found_by_its_trace_while_it_is_kept() -> None:
    buffer = FlowBuffer(kept=1)
    flow(tracer_of(buffer), "disconnect /a", "save")
    (first,) = buffer.latest(1)
    assert buffer.find(first["trace_id"]) == first
    flow(tracer_of(buffer), "disconnect /b")
    assert buffer.find(first["trace_id"]) is None
    assert buffer.finished == 2


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
