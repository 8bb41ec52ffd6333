"""The whole pipeline at work: the real Collector, Jaeger and Prometheus on the committed files, the service, its partner
and traffic; outages of each part, injected faults, and a drain. It is one story, told by fixtures that follow each other:

    stack -> healthy -> outages -> trouble -> drained

An alert's `for:` is shortened here (programs.HURRY) and nothing else, so what is shown is that real faults make these
expressions true on real series. That the windows of hours and days do what they should is shown in otel/rules/tests.
"""

import asyncio
import json
import os
import re
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml
from programs import (
    OTEL,
    ROOT,
    Jaeger,
    Program,
    Prometheus,
    collector,
    free_ports,
    jaeger,
    prometheus,
    prometheus_files,
    resident,
    until,
    write_targets,
)
from queries import Query, panels, queries
from scraped_names import ScrapedNames

from outlive_service.account import Account
from outlive_service.demo import Demo

T = TypeVar("T")

# One worker, or each would build a pipeline of its own.
pytestmark = pytest.mark.xdist_group("stack")

OUTAGE = float(os.environ.get("OUTLIVE_OUTAGE_SECONDS", "8"))
"""How long each part of the pipeline is away."""
DASHBOARDS = ("outlive-flows", "outlive-task", "outlive-connections", "outlive-objectives", "outlive-pipeline")
VARIABLES = {"__rate_interval": "20s", "__range": "5m", "__range_s": "300", "__interval": "2s"}
SERVICE, PARTNER = "outlive-service", "outlive-partner"
MEBIBYTE = 1024 * 1024
BAD = ("timed_out", "failed", "rejected")
TASKS = {
    "save_transcript",
    "notify_partner",
    "announce_departure",
    "save_answer",
    "bill_tokens",
    "read_page",
    "release_export",
}
ROOM = "disconnect /rooms/{room}"

NO_FAULTS: dict[str, Any] = {}
FAULTS = {
    "notices": {"latency": 0.05, "error_rate": 0.15, "hang_rate": 0.2},
    "charges": {"latency": 0.05, "error_rate": 0.3, "hang_rate": 0.1},
    "completions": {"latency": 0.1, "error_rate": 0.1, "hang_rate": 0.02, "token_interval": 0.02},
}


class Play:
    """The demo's service, partner and traffic, on an event loop in a thread of its own."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._running = demo.running()
        self._traffic: asyncio.Future[None] | None = None

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(90)

    def start(self) -> None:
        self._do(self._running.__aenter__())
        self.faults(NO_FAULTS)

    def begin_traffic(self) -> None:
        async def begin() -> None:
            self._traffic = asyncio.ensure_future(self.demo.traffic.run())

        self._do(begin())

    def faults(self, plan: dict[str, Any]) -> None:
        httpx.put(f"{self.demo.addresses.partner}/faults", json=plan).raise_for_status()

    def drain(self) -> Account:
        """Stop the service in the middle of everything, and draw up the account."""
        traffic, running = self._traffic, self._running
        assert traffic is not None
        self._traffic = None

        async def drain() -> None:
            os.kill(self.demo.addresses.service_pid, signal.SIGTERM)
            await traffic  # it ends when nobody is there any more
            await running.__aexit__(None, None, None)

        self._do(drain())
        assert self.demo.account is not None
        return self.demo.account

    def close(self) -> None:
        async def close() -> None:
            if self._traffic is not None:
                self.demo.traffic.stop()
                await self._traffic
            # A no-op once it has been left; else the processes are still there.
            with suppress(RuntimeError, StopAsyncIteration):
                await self._running.__aexit__(None, None, None)

        try:
            self._do(close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


@dataclass
class Stack:
    folder: Path
    targets: dict[str, list[str]]
    programs: dict[str, Program]
    prometheus: Prometheus
    jaeger: Jaeger
    jaeger_otlp: str
    play: Play
    started: float = field(default_factory=time.time)

    def tell_targets(self) -> None:
        write_targets(self.folder, **self.targets)

    def told(self, metric: str, label: str) -> float:
        """What the service itself counts, without Prometheus between: the sum of the series with this label."""
        lines = httpx.get(f"{self.play.demo.addresses.service}/metrics").text.splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{metric}{{") and label in line
        )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything on its feet, and nobody there yet."""
    folder = tmp_path_factory.mktemp("stack")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as ending, pytest.MonkeyPatch.context() as patch:
        trace_store, jaeger_at = jaeger(folder, url)
        gateway, collector_at = collector(
            folder, JAEGER_OTLP_ENDPOINT=jaeger_at["otlp"], TRACES_REQUESTS_PERCENT="50"
        )
        prometheus_files(folder)
        metric_store = prometheus(folder, port)
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector_at["otlp"])
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        patch.setenv("SHUTDOWN_DELAY", "3")
        play = Play(Demo(20, 3, {}))
        for program in (trace_store, gateway):
            ending.callback(program.stop)
            program.start()
        ending.callback(play.close)
        play.start()
        stack = Stack(
            folder,
            {
                "outlive": [play.demo.addresses.service.removeprefix("http://")],
                "collector": [collector_at["metrics"]],
                "span_metrics": [collector_at["spans"]],
                "jaeger": [jaeger_at["metrics"]],
                "prometheus": [f"127.0.0.1:{port}"],
            },
            {"jaeger": trace_store, "collector": gateway, "prometheus": metric_store},
            Prometheus(ending.enter_context(httpx.Client(base_url=url, timeout=20.0))),
            Jaeger(ending.enter_context(httpx.Client(base_url=jaeger_at["query"], timeout=20.0))),
            jaeger_at["otlp"],
            play,
        )
        stack.tell_targets()
        ending.callback(metric_store.stop)
        metric_store.start()
        yield stack


# All is well.


@dataclass
class Healthy:
    firing: set[str]
    latencies: list[float]
    bad: float


@contextmanager
def probed(stack: Stack) -> Iterator[list[float]]:
    """What a plain request takes meanwhile, in seconds, twenty times a second."""
    latencies: list[float] = []
    over = threading.Event()

    def probe() -> None:
        with httpx.Client(base_url=stack.play.demo.addresses.service, timeout=30.0) as client:
            while not over.wait(0.05):
                began = time.perf_counter()
                client.get("/").raise_for_status()
                latencies.append(time.perf_counter() - began)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield latencies
    finally:
        over.set()
        thread.join()


def bad_runs(stack: Stack) -> float:
    return sum(stack.told("outlive_runs_total", f'outcome="{outcome}"') for outcome in BAD)


def completed_runs(stack: Stack) -> float:
    return stack.told("outlive_runs_total", 'outcome="completed"')


@pytest.fixture(scope="module")
def healthy(stack: Stack) -> Healthy:
    """Traffic without faults, until every task has done its work, and for no less time than an outage."""
    metrics = stack.prometheus
    stack.play.begin_traffic()
    until(lambda: metrics.value("sum(up)") == 5, why="all targets are up")
    with probed(stack) as latencies:
        began = time.monotonic()
        until(
            lambda: metrics.value('count(outlive_runs_total{outcome="completed"} > 0)') == len(TASKS)
            and metrics.value('sum(outlive_runs_total{outcome="cancelled"})') > 5
            and time.monotonic() - began > OUTAGE,
            60,
            "every task has completed runs, and somebody came back in time",
        )
    return Healthy(metrics.firing(), latencies, bad_runs(stack))


def test_nothing_fires_while_all_is_well(healthy: Healthy) -> None:
    # Not the runs that were cancelled because somebody came back, either.
    assert healthy.bad == 0
    assert healthy.firing == set()


# A part of the pipeline is away.


@dataclass
class Outage:
    start: float
    end: float
    firing: set[str]
    latencies: list[float]
    completed: float
    grown: int
    """Of the service's memory, in bytes."""
    collector: int
    """The most memory that the Collector held, in bytes."""
    disconnects: float
    """How many rooms were left meanwhile."""


def outage(stack: Stack, begin: Callable[[], object], end: Callable[[], object]) -> Outage:
    """Let something be away for a while, and wait until traces reach Jaeger again."""
    service, gateway = stack.play.demo.addresses.service_pid, stack.programs["collector"]
    memory, completed, disconnects = resident(service), completed_runs(stack), left_rooms(stack)
    begin()
    start = time.time()
    firing: set[str] = set()
    most = 0

    def passed() -> bool:
        nonlocal most
        firing.update(stack.prometheus.firing())
        most = max(most, gateway.memory)
        return time.time() - start > OUTAGE

    with probed(stack) as latencies:
        until(passed, OUTAGE + 5, pause=0.25)
    completed, disconnects = completed_runs(stack) - completed, left_rooms(stack) - disconnects
    grown = resident(service) - memory
    ended = time.time()
    end()
    back = time.time()
    until(lambda: flows(stack, back), why="traces of what came after it are in Jaeger")
    until(lambda: "OutliveTargetDown" not in stack.prometheus.firing(), why="everything can be scraped again")
    return Outage(
        start, ended, firing, latencies, completed, grown, max(most, gateway.memory), disconnects
    )


def left_rooms(stack: Stack) -> float:
    return stack.told("outlive_disconnects_total", 'route="/rooms/{room}"')


def flows(stack: Stack, start: float, end: float | None = None) -> list[dict[str, Any]]:
    """Disconnect flows from rooms that began in a time."""
    return stack.jaeger.find(SERVICE, start, end, operation=ROOM)


@pytest.fixture(scope="module")
def outages(stack: Stack, healthy: Healthy) -> dict[str, Outage]:
    gateway, store = stack.programs["collector"], stack.programs["jaeger"]

    def refuse() -> None:
        gateway.crash()
        gateway.start(COLLECTOR_MEMORY_LIMIT_MIB="1")

    def accept() -> None:
        gateway.crash()
        gateway.start()

    hung = outage(stack, store.hang, store.go_on)
    # Here, since it holds its traces in memory and is stopped next.
    until(lambda: len(flows(stack, hung.start, hung.end)) > 0.9 * hung.disconnects, why="what it missed is there")
    return {
        "jaeger hung": hung,
        "jaeger stopped": outage(stack, store.crash, store.start),
        "collector hung": outage(stack, gateway.hang, gateway.go_on),
        "collector stopped": outage(stack, gateway.crash, gateway.start),
        # Last, since its alert looks back for five minutes.
        "collector refusing": outage(stack, refuse, accept),
    }


EACH_OUTAGE = pytest.mark.parametrize(
    "name",
    ["jaeger hung", "jaeger stopped", "collector hung", "collector stopped", "collector refusing"],
)


@EACH_OUTAGE
def test_an_outage_costs_the_service_nothing(name: str, healthy: Healthy, outages: dict[str, Outage]) -> None:
    away = outages[name]
    assert len(away.latencies) > 5 * OUTAGE
    for share in (0.5, 0.95):
        before, meanwhile = quantile(healthy.latencies, share), quantile(away.latencies, share)
        assert meanwhile < 2 * before + 0.05, f"{share:.0%} of requests: {meanwhile:.3f} s, before {before:.3f} s"
    assert max(away.latencies) < max(healthy.latencies) + 1.0
    assert away.completed > 5 * OUTAGE
    assert away.grown < 64 * MEBIBYTE
    assert away.collector < 400 * MEBIBYTE


def quantile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100)[round(share * 100) - 1]


@EACH_OUTAGE
def test_an_outage_is_told_by_its_own_alert_and_no_other(name: str, outages: dict[str, Outage]) -> None:
    expected = "OutliveCollectorRefusing" if name == "collector refusing" else "OutliveTargetDown"
    assert outages[name].firing == {expected}


def test_the_collector_keeps_what_jaeger_could_not_take(stack: Stack, outages: dict[str, Outage]) -> None:
    away = outages["jaeger stopped"]
    assert away.disconnects > OUTAGE
    # Those at the edges may count on one side only.
    until(lambda: len(flows(stack, away.start, away.end)) > 0.9 * away.disconnects)


def test_the_queue_of_the_collector_tells_of_jaegers_outage(stack: Stack, outages: dict[str, Outage]) -> None:
    for name in ("jaeger hung", "jaeger stopped"):
        away = outages[name]
        (held,) = stack.prometheus.query_range(
            'max(otelcol_exporter_queue_size{job="collector"} + otelcol_exporter_in_flight_requests)',
            away.start,
            away.end,
            1,
        )
        assert max(float(value) for _, value in held["values"]) > 0


# Faults.


@dataclass
class Trouble:
    start: float
    moment: float
    """When every alert that should fire does, in seconds since the epoch."""
    bad_before: float
    firing: set[tuple[str, str, str]]


EXPECTED = {
    ("OutliveErrorBudgetBurn", "page", ""),
    ("OutliveErrorBudgetBurn", "ticket", ""),
    ("OutliveRunsTimingOut", "ticket", "notify_partner"),
    ("OutliveRunsTimingOut", "ticket", "ignores_cancellation"),
    ("OutliveRunsRejected", "page", "takes_for_ever"),
    ("OutliveRunsStuck", "ticket", "ignores_cancellation"),
    ("OutlivePendingNearLimit", "page", ""),
    ("OutliveEventLoopLag", "ticket", ""),
    ("OutliveCollectorDropping", "ticket", ""),
    ("OutliveCollectorRefusing", "ticket", ""),  # from the last outage
}
"""Name, severity and task of the alerts that must fire under FAULTS and with the troubled app."""


def firing(stack: Stack) -> set[tuple[str, str, str]]:
    return {
        (labels["alertname"], labels["severity"], labels.get("task", ""))
        for alert in stack.prometheus.alerts()
        if alert["state"] == "firing"
        for labels in [alert["labels"]]
    }


@pytest.fixture(scope="module")
def trouble(stack: Stack, outages: dict[str, Outage]) -> Iterator[Trouble]:
    """A partner that fails, hangs and takes its time; an app in which all else goes wrong; a Collector that drops."""
    bad_before = bad_runs(stack)
    start = time.time()
    stack.play.faults(FAULTS)
    with ExitStack() as ending:
        leaky, leaky_at = collector(
            stack.folder,
            "leaky",
            JAEGER_OTLP_ENDPOINT=f"127.0.0.1:{free_ports(1)[0]}",
            JAEGER_RETRY_FOR="10s",
        )
        (port,) = free_ports(1)
        troubled = Program(
            "troubled",
            [sys.executable, str(Path(__file__).with_name("troubled.py")), str(port)],
            {},
            stack.folder,
            f"http://127.0.0.1:{port}/healthz",
        )
        for program in (leaky, troubled):
            ending.callback(program.stop)
            program.start()
        stack.targets["outlive"].append(f"127.0.0.1:{port}")
        stack.targets["collector"].append(leaky_at["metrics"])
        stack.tell_targets()
        send(leaky_at["otlp"], otlp_span("a trace that gets nowhere"))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            until(
                lambda: stack.prometheus.query('outlive_runs_total{task="takes_for_ever"}'),
                why="the troubled app is scraped before its trouble begins",
            )
            client.post("/stick").raise_for_status()
            client.post("/rush").raise_for_status()

            def fires() -> bool:
                client.post("/block").raise_for_status()
                return firing(stack) >= EXPECTED

            with suppress(AssertionError):  # which alerts are missing is for the test to tell
                until(fires, 90)
        yield Trouble(start, time.time(), bad_before, firing(stack))


def test_exactly_the_alerts_of_the_injected_faults_fire(trouble: Trouble) -> None:
    assert trouble.firing == EXPECTED


def test_no_run_ends_badly_because_of_an_outage(trouble: Trouble) -> None:
    assert trouble.bad_before == 0


def test_every_recording_rule_has_a_value(stack: Stack, trouble: Trouble) -> None:
    rules = stack.prometheus.rules()
    recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
    assert recorded == {
        rule["record"]
        for group in yaml.safe_load((OTEL / "rules" / "recording.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    for name in sorted(recorded):
        values = [float(each["value"][1]) for each in stack.prometheus.query(name, trouble.moment)]
        assert any(value > 0 for value in values), name


# From a number to its trace.


def exemplars(stack: Stack, trouble: Trouble, selector: str) -> list[dict[str, Any]]:
    """The exemplars of the troubled time, but for the last seconds, whose traces are still on their way."""
    return stack.prometheus.exemplars(selector, trouble.start + 1, trouble.moment - 8)


def parent(span: dict[str, Any]) -> str | None:
    return next((each["spanID"] for each in span["references"] if each["refType"] == "CHILD_OF"), None)


def tags(span: dict[str, Any]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in span["tags"]}


def test_every_exemplar_of_runs_and_tails_leads_to_its_trace(stack: Stack, trouble: Trouble) -> None:
    for metric in ("outlive_disconnect_tail_seconds_bucket", "outlive_run_duration_seconds_bucket"):
        found = exemplars(stack, trouble, metric)
        assert len(found) > 10, metric
        for each in found:
            trace = stack.jaeger.trace(each["labels"]["trace_id"])
            assert trace is not None, each
            (exact,) = [span for span in trace["spans"] if span["spanID"] == each["labels"]["span_id"]]
            if "tail" in metric:
                assert exact["operationName"] == f"disconnect {each['series']['route']}"
            else:
                assert exact["operationName"] == each["series"]["task"]
                assert tags(exact)["outlive.outcome"] == each["series"]["outcome"]


def test_an_exemplar_leads_through_service_httpx_and_partner(stack: Stack, trouble: Trouble) -> None:
    shapes = set()
    for each in exemplars(stack, trouble, 'outlive_run_duration_seconds_bucket{task="notify_partner"}'):
        trace = stack.jaeger.trace(each["labels"]["trace_id"])
        assert trace is not None
        spans = {span["spanID"]: span for span in trace["spans"]}

        def told(span: dict[str, Any], trace: dict[str, Any] = trace) -> tuple[str, str, str]:
            process = trace["processes"][span["processID"]]["serviceName"]
            return process, span["operationName"], tags(span).get("span.kind", "")

        for answer in spans.values():
            line = [answer]
            while (above := parent(line[-1])) in spans:
                line.append(spans[above])
            if told(answer)[0] == PARTNER:
                shapes.add(tuple(told(span) for span in reversed(line)))
    assert shapes == {
        (
            (SERVICE, ROOM, "internal"),
            (SERVICE, "notify_partner", "internal"),
            (SERVICE, "POST", "client"),
            (PARTNER, "POST /notices", "server"),
        )
    }


def test_of_plain_requests_only_a_share_is_kept(stack: Stack, trouble: Trouble) -> None:
    found = exemplars(stack, trouble, "outlive_http_request_duration_seconds_bucket")
    kept = [stack.jaeger.trace(each["labels"]["trace_id"]) is not None for each in found]
    assert any(kept)
    dropped = stack.prometheus.value(
        'sum(otelcol_processor_tail_sampling_global_count_traces_sampled_total{sampled="false"})'
    )
    assert dropped > 0


def test_jaegers_performance_monitoring_has_calls_errors_and_latencies(stack: Stack, trouble: Trouble) -> None:
    for service, kind, more in (
        (SERVICE, "calls", {}),
        (PARTNER, "calls", {}),
        (PARTNER, "errors", {}),
        (SERVICE, "latencies", {"quantile": 0.95}),
        (PARTNER, "latencies", {"quantile": 0.95}),
    ):
        (family,) = stack.jaeger.metrics(kind, service, lookback=600_000, step=5_000, ratePer=60_000, **more)
        assert family["labels"] == [{"name": "service_name", "value": service}]
        values = [point["gaugeValue"]["doubleValue"] for point in family["metricPoints"]]
        assert any(float(value) > 0 for value in values), (service, kind)


def test_the_service_graph_has_the_partner(stack: Stack, trouble: Trouble) -> None:
    edge = f'{{client="{SERVICE}", server="{PARTNER}"}}'
    assert stack.prometheus.value(f"sum(traces_service_graph_request_total{edge})", trouble.moment) > 0
    assert stack.prometheus.value(f"sum(traces_service_graph_request_failed_total{edge})", trouble.moment) > 0


# What the sampling keeps, at percentages of zero.


def otlp_span(name: str, seconds: float = 0.01, status: int = 0, **attributes: str) -> dict[str, Any]:
    """A span that is a trace of its own, in OTLP's JSON."""
    now = time.time_ns()
    return {
        "traceId": os.urandom(16).hex(),
        "spanId": os.urandom(8).hex(),
        "name": name,
        "kind": 1,
        "startTimeUnixNano": str(now - int(seconds * 1e9)),
        "endTimeUnixNano": str(now),
        "status": {"code": status},
        "attributes": [
            {"key": key.replace("_", "."), "value": {"stringValue": value}} for key, value in attributes.items()
        ],
    }


def send(otlp: str, *spans: dict[str, Any]) -> None:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "sampled"}}]}
    traces = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}
    httpx.post(f"{otlp}/v1/traces", json=traces).raise_for_status()


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
    kept += [otlp_span("error", status=2), otlp_span("slow", 6.0), otlp_span("slow run", 6.0, outlive_task="save")]
    dropped = [
        otlp_span("flow", outlive_disconnect_cause="client_lost"),
        otlp_span("run", outlive_task="save", outlive_outcome="completed"),
        otlp_span("plain"),
        otlp_span("long WebSocket", 60.0, http_scheme="ws"),
        otlp_span("probe", 6.0, status=2, http_route="/healthz"),
    ]
    # A flow whose first run completes, and whose second doesn't: both spans are kept.
    first = otlp_span("first", outlive_task="save", outlive_outcome="completed")
    second = otlp_span("second", outlive_task="notify", outlive_outcome="timed_out") | {"traceId": first["traceId"]}
    try:
        strict.start()
        send(at["otlp"], *kept, *dropped, first)
        send(at["otlp"], second)

        def there() -> bool:
            traces = stack.jaeger.find("sampled", trouble.start - 60)
            return {each["traceID"] for each in traces} >= {each["traceId"] for each in [*kept, first]}

        until(there, why="what went wrong is in Jaeger")
        until(
            lambda: sampled(httpx.get(f"http://{at['metrics']}/metrics").text, "false") == len(dropped),
            why="the rest is decided on",
        )
        traces = {each["traceID"]: each for each in stack.jaeger.find("sampled", trouble.start - 60)}
        assert traces.keys() == {each["traceId"] for each in [*kept, first]}
        assert len(traces[first["traceId"]]["spans"]) == 2
    finally:
        strict.stop()


def sampled(metrics: str, kept: str) -> float:
    found = re.findall(
        rf'^otelcol_processor_tail_sampling_global_count_traces_sampled_total\{{.*sampled="{kept}".*\}} (\S+)$',
        metrics,
        re.MULTILINE,
    )
    return sum(map(float, found))


# The drain.


@dataclass
class Drained:
    account: Account
    firing: set[tuple[str, str, str]]
    moment: float


@pytest.fixture(scope="module")
def drained(stack: Stack, trouble: Trouble) -> Drained:
    """The service stopped in the middle of everything, and not started again."""
    account = stack.play.drain()
    late = {("OutliveDrainOverran", "page", ""), ("OutliveTargetDown", "page", "")}
    with suppress(AssertionError):
        until(lambda: firing(stack) >= late)
    return Drained(account, firing(stack), time.time())


def test_no_run_is_lost_in_all_this(drained: Drained) -> None:
    assert drained.account.errors == ()
    assert drained.account.lost == drained.account.doubled == 0
    assert drained.account.submitted == sum(drained.account.outcomes.values())


def test_prometheus_saw_the_drain(stack: Stack, drained: Drained) -> None:
    assert stack.prometheus.value("max(max_over_time(outlive_draining[2m]))") == 1
    assert drained.firing == EXPECTED | {
        ("OutliveDrainOverran", "page", ""),
        ("OutliveTargetDown", "page", ""),
    }


@pytest.mark.parametrize("outcome", ["timed_out", "failed"])
def test_the_traces_of_all_runs_that_went_wrong_are_kept(
    outcome: str, stack: Stack, trouble: Trouble, drained: Drained
) -> None:
    wanted = {task: of[outcome] for task, of in drained.account.counters.runs.items() if of[outcome]}
    assert wanted

    def there() -> dict[str, int]:
        traces = stack.jaeger.find(SERVICE, trouble.start, tags={"outlive.outcome": outcome})
        runs = [span for trace in traces for span in trace["spans"] if tags(span).get("outlive.outcome") == outcome]
        return dict(Counter(span["operationName"] for span in runs))

    with suppress(AssertionError):
        until(lambda: there() == wanted, 20)
    assert there() == wanted


# The dashboards.


def dashboard(uid: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "grafana" / "dashboards" / f"{uid}.json").read_text()))


def variables(uid: str) -> dict[str, str]:
    return VARIABLES | ({"task": "notify_partner"} if uid == "outlive-task" else {})


def answered(stack: Stack, query: Query, trouble: Trouble) -> bool:
    """Whether a query has any number for an answer."""
    if query.instant:
        values = [each["value"] for each in stack.prometheus.query(query.expr, trouble.moment)]
    else:
        found = stack.prometheus.query_range(query.expr, stack.started, time.time(), 2)
        values = [value for each in found for value in each["values"]]
    return any(value != "NaN" for _, value in values)


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_every_query_of_a_dashboard_returns_data(
    uid: str, stack: Stack, trouble: Trouble, drained: Drained
) -> None:
    asked = queries(dashboard(uid), variables(uid))
    assert len(asked) > 5
    assert [str(query) for query in asked if not answered(stack, query, trouble)] == []


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_every_panel_with_exemplars_has_some(
    uid: str, stack: Stack, trouble: Trouble, drained: Drained
) -> None:
    asked = [query for query in queries(dashboard(uid), variables(uid)) if query.exemplar]
    assert [
        str(query)
        for query in asked
        if not stack.prometheus.exemplars(query.expr, trouble.start, trouble.moment)
    ] == []


@pytest.fixture(scope="module")
def names(stack: Stack, drained: Drained) -> ScrapedNames:
    return ScrapedNames(stack.prometheus, stack.started, drained.moment)


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_the_names_in_a_dashboard_exist(uid: str, names: ScrapedNames) -> None:
    wrong = {str(query): names.wrong(query.expr) for query in queries(dashboard(uid), variables(uid))}
    assert {query: problems for query, problems in wrong.items() if problems} == {}


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_the_labels_in_a_legend_exist(uid: str, names: ScrapedNames) -> None:
    every = queries(dashboard(uid), variables(uid))
    resolved = {(query.title, query.ref): query.expr for query in every if query.source == "panel"}
    wrong = []
    for panel in panels(dashboard(uid)):
        for target in panel.get("targets", []):
            legend = frozenset(re.findall(r"{{\s*(\w+)\s*}}", target.get("legendFormat", "")))
            expr = resolved[panel["title"], target["refId"]]
            wrong += [f"{panel['title']}: {problem}" for problem in names.wrong(expr, legend)]
    assert wrong == []


@pytest.mark.parametrize("file", ["recording.yml", "alerts.yml"])
def test_the_names_in_the_rules_exist(file: str, names: ScrapedNames) -> None:
    rules = yaml.safe_load((OTEL / "rules" / file).read_text())["groups"]
    every = [rule for group in rules for rule in group["rules"]]
    assert [problem for rule in every for problem in names.wrong(rule["expr"])] == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "runbooks").glob("*.md")), ids=lambda path: path.stem)
def test_the_queries_in_a_runbook_exist_and_have_answers(path: Path, stack: Stack, names: ScrapedNames) -> None:
    asked = re.findall(r"^```promql\n(.+?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    assert asked
    for expr in asked:
        assert names.wrong(expr) == [], expr
        stack.prometheus.query(expr)


@pytest.mark.parametrize(
    ("expr", "problem"),
    [
        ("rate(outlive_runs_totl[1m])", "no metric 'outlive_runs_totl'"),
        ('outlive_runs_total{tsk="a"}', "outlive_runs_total has no label 'tsk'"),
        ("sum by (tsk) (rate(outlive_runs_total[1m]))", "no label 'tsk' to group by"),
        ("sum by (task) (outlive_runs_total) / on (tsk) outlive_runs_limit", "no label 'tsk' to match on"),
        ("sum by (outcome) (sum by (task) (outlive_runs_total))", "no label 'outcome' to group by"),
        ("otelcol_exporter_sent_spans", "no metric 'otelcol_exporter_sent_spans'"),
        ("histogram_quantile(0.9, sum by (lee) (rate(jaeger_x_bucket[1m])))", "no metric 'jaeger_x_bucket'"),
    ],
)
def test_a_name_that_does_not_exist_is_found(expr: str, problem: str, names: ScrapedNames) -> None:
    assert problem in names.wrong(expr)


def test_a_legend_of_a_label_that_is_gone_is_found(names: ScrapedNames) -> None:
    expr = "sum by (task) (outlive_runs_total)"
    assert names.wrong(expr, frozenset({"task"})) == []
    assert names.wrong(expr, frozenset({"outcome"})) == ["no label 'outcome' is left for the legend"]
