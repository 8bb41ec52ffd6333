"""From a number to its trace, in the real Prometheus and the real Jaeger; and what the sampling keeps."""

import re
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx
import pytest
from programs import collector, until
from story import PARTNER, ROOM, SERVICE, Drained, Stack, Trouble, otlp_span, send

pytestmark = pytest.mark.xdist_group("stack")


def exemplars(stack: Stack, trouble: Trouble, selector: str) -> list[dict[str, Any]]:
    """The exemplars of the troubled time, but for the last seconds, whose traces may still have been on their way."""
    return stack.prometheus.exemplars(selector, trouble.start + 1, trouble.moment - 8)


def parent(span: dict[str, Any]) -> str | None:
    return next((each["spanID"] for each in span["references"] if each["refType"] == "CHILD_OF"), None)


def tags(span: dict[str, Any]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in span["tags"]}


@pytest.mark.parametrize("metric", ["outlive_disconnect_tail_seconds", "outlive_run_duration_seconds"])
def test_every_exemplar_of_runs_and_tails_leads_to_its_trace(
    metric: str, stack: Stack, trouble: Trouble
) -> None:
    found = exemplars(stack, trouble, f"{metric}_bucket")
    assert len(found) > 10
    for each in found:
        trace = stack.jaeger.trace(each["labels"]["trace_id"])
        assert trace is not None, each
        (exact,) = [span for span in trace["spans"] if span["spanID"] == each["labels"]["span_id"]]
        if metric == "outlive_disconnect_tail_seconds":
            assert exact["operationName"] == f"disconnect {each['series']['route']}"
            assert parent(exact) is None
        else:
            assert exact["operationName"] == each["series"]["task"]
            assert tags(exact)["outlive.outcome"] == each["series"]["outcome"]


def test_an_exemplar_leads_through_service_httpx_and_partner(stack: Stack, trouble: Trouble) -> None:
    lines = set()
    for each in exemplars(stack, trouble, 'outlive_run_duration_seconds_bucket{task="notify_partner"}'):
        trace = stack.jaeger.trace(each["labels"]["trace_id"])
        assert trace is not None
        spans = {span["spanID"]: span for span in trace["spans"]}
        for answer in spans.values():
            line = [answer]
            while (above := parent(line[0])) in spans:
                line.insert(0, spans[above])
            if service(trace, answer) == PARTNER:
                lines.add(
                    tuple(
                        (service(trace, span), span["operationName"], tags(span)["span.kind"])
                        for span in line
                    )
                )
    assert lines == {
        (
            (SERVICE, ROOM, "internal"),
            (SERVICE, "notify_partner", "internal"),
            (SERVICE, "POST", "client"),
            (PARTNER, "POST /notices", "server"),
        )
    }


def service(trace: dict[str, Any], span: dict[str, Any]) -> str:
    return str(trace["processes"][span["processID"]]["serviceName"])


@pytest.mark.parametrize("outcome", ["timed_out", "failed"])
def test_the_traces_of_all_runs_that_went_wrong_are_kept(
    outcome: str, stack: Stack, trouble: Trouble, drained: Drained
) -> None:
    # Before the faults there were none (test_outages.py), so the account's are all of this time.
    wanted = {task: of[outcome] for task, of in drained.account.counters.runs.items() if of[outcome]}
    assert sum(wanted.values()) > 10

    def kept() -> dict[str, int]:
        traces = stack.jaeger.find(SERVICE, trouble.start, tags={"outlive.outcome": outcome})
        runs = [
            span
            for trace in traces
            for span in trace["spans"]
            if tags(span).get("outlive.outcome") == outcome
        ]
        return dict(Counter(span["operationName"] for span in runs))

    with suppress(AssertionError):
        until(lambda: kept() == wanted, 20)
    assert kept() == wanted


def test_of_plain_requests_only_a_share_is_kept(stack: Stack, trouble: Trouble) -> None:
    # The story's Collector has TRACES_REQUESTS_PERCENT=50.
    found = exemplars(stack, trouble, "outlive_http_request_duration_seconds_bucket")
    assert any(stack.jaeger.trace(each["labels"]["trace_id"]) for each in found)
    decided = "sum by (decision) (otelcol_processor_tail_sampling_global_count_traces_sampled_total)"
    by_decision = {
        each["metric"]["decision"]: float(each["value"][1])
        for each in stack.prometheus.query(decided, trouble.moment)
    }
    assert min(by_decision["sampled"], by_decision["not_sampled"]) > 0


def test_the_sampling_keeps_what_went_wrong_and_a_share_of_the_rest(stack: Stack, trouble: Trouble) -> None:
    strict, at = collector(
        stack.folder,
        "strict",
        JAEGER_OTLP_ENDPOINT=stack.jaeger_otlp,
        TRACES_RUNS_PERCENT="0",
        TRACES_REQUESTS_PERCENT="0",
    )
    kept = [
        otlp_span("outcome", outlive_task="save", outlive_outcome=outcome)
        for outcome in ("timed_out", "cancelled", "failed", "rejected")
    ]
    kept += [
        otlp_span("error", status=2),
        otlp_span("slow", 6.0),
        otlp_span("slow run", 6.0, outlive_task="save", outlive_outcome="completed"),
    ]
    dropped = [
        otlp_span("flow", outlive_disconnect_cause="client_lost"),
        otlp_span("run", outlive_task="save", outlive_outcome="completed"),
        otlp_span("plain"),
        otlp_span("long WebSocket", 60.0, http_scheme="ws"),
        otlp_span("probe that fails slowly", 6.0, status=2, http_route="/healthz"),
    ]
    # A flow whose first run completes and whose second doesn't: it is kept, and as a whole.
    first = otlp_span("first", outlive_task="save", outlive_outcome="completed")
    second = otlp_span("second", outlive_task="notify", outlive_outcome="timed_out")
    second["traceId"] = first["traceId"]
    wanted = {each["traceId"] for each in [*kept, first]}
    try:
        strict.start()
        send(at["otlp"], "sampled", *kept, *dropped, first)
        send(at["otlp"], "sampled", second)

        def traces() -> dict[str, dict[str, Any]]:
            return {each["traceID"]: each for each in stack.jaeger.find("sampled", trouble.start - 60)}

        until(lambda: traces().keys() >= wanted, why="what went wrong is in Jaeger")
        until(lambda: not_sampled(at["metrics"]) == len(dropped), why="the rest is decided on")
        assert traces().keys() == wanted
        assert len(traces()[first["traceId"]]["spans"]) == 2
    finally:
        strict.stop()


def not_sampled(address: str) -> float:
    """How many traces a Collector has decided not to keep."""
    metrics = httpx.get(f"http://{address}/metrics").text
    name = "otelcol_processor_tail_sampling_global_count_traces_sampled_total"
    found = re.findall(rf'^{name}{{.*sampled="false".*}} (\S+)$', metrics, re.MULTILINE)
    return sum(map(float, found))


@pytest.mark.parametrize(
    ("service", "kind", "more"),
    [
        (SERVICE, "calls", {}),
        (PARTNER, "calls", {}),
        (PARTNER, "errors", {}),
        (SERVICE, "latencies", {"quantile": 0.95}),
        (PARTNER, "latencies", {"quantile": 0.95}),
    ],
)
def test_jaegers_performance_monitoring_answers(
    service: str, kind: str, more: dict[str, float], stack: Stack, trouble: Trouble
) -> None:
    (family,) = stack.jaeger.metrics(kind, service, lookback=600_000, step=5_000, ratePer=60_000, **more)
    assert family["labels"] == [{"name": "service_name", "value": service}]
    values = [float(point["gaugeValue"]["doubleValue"]) for point in family["metricPoints"]]
    assert any(value > 0 for value in values)


def test_the_service_graph_has_the_partner(stack: Stack, trouble: Trouble) -> None:
    edge = f'{{client="{SERVICE}", server="{PARTNER}"}}'
    for metric in ("traces_service_graph_request_total", "traces_service_graph_request_failed_total"):
        assert stack.prometheus.value(f"sum({metric}{edge})", trouble.moment) > 0
