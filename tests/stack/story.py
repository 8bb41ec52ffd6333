"""The whole pipeline at work, in five chapters that follow each other (see conftest.py):

    stack -> healthy -> outages -> trouble -> drained

The service, its partner and traffic with the real Collector, Jaeger and Prometheus on the committed files; then each part of
the pipeline away for a while; then injected faults; then a drain. What happened is kept, so that tests can ask in any order.
"""

import asyncio
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from programs import (
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

from outlive_service import demo
from outlive_service.account import Account
from outlive_service.demo import Demo

T = TypeVar("T")

OUTAGE = float(os.environ.get("OUTLIVE_OUTAGE_SECONDS", "8"))
"""How long each part of the pipeline is away."""
SERVICE, PARTNER = "outlive-service", "outlive-partner"
ROOM = "disconnect /rooms/{room}"
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
"""All of the service, the scope included."""
FAULTS = {
    "notices": {"latency": 0.05, "error_rate": 0.15, "hang_rate": 0.2},
    "charges": {"latency": 0.05, "error_rate": 0.3, "hang_rate": 0.1},
    "completions": {"latency": 0.1, "error_rate": 0.1, "hang_rate": 0.02, "token_interval": 0.02},
}
"""What the partner suffers from in the chapter of trouble."""

Alert = tuple[str, str, str]
"""An alert's name, its severity, and its task if it has one."""

EXPECTED: set[Alert] = {
    ("OutliveErrorBudgetBurn", "page", ""),
    ("OutliveErrorBudgetBurn", "ticket", ""),
    ("OutliveRunsTimingOut", "ticket", "notify_partner"),
    ("OutliveRunsTimingOut", "ticket", "ignores_cancellation"),
    ("OutliveRunsRejected", "page", "takes_for_ever"),
    ("OutliveRunsStuck", "ticket", "ignores_cancellation"),
    ("OutlivePendingNearLimit", "page", ""),
    ("OutliveEventLoopLag", "ticket", ""),
    ("OutliveCollectorDropping", "ticket", ""),
    ("OutliveCollectorRefusing", "ticket", ""),  # still, from the last outage
}
"""What must fire in the chapter of trouble, and nothing else."""
AFTER_DRAIN: set[Alert] = {("OutliveDrainOverran", "page", ""), ("OutliveTargetDown", "page", "")}
"""What must fire too when the service was stopped and isn't back."""


class Play:
    """The demo's service, partner and traffic, on an event loop in a thread of its own."""

    def __init__(self) -> None:
        self.demo = Demo(20, 3, {})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._running = self.demo.running()
        self._traffic: asyncio.Future[None] | None = None

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(90)

    def start(self) -> None:
        """Start the processes; nothing fails yet, and nobody comes."""
        self._do(self._running.__aenter__())
        self.faults({})

    def faults(self, plan: dict[str, Any]) -> None:
        httpx.put(f"{self.demo.addresses.partner}/faults", json=plan).raise_for_status()

    def begin_traffic(self) -> None:
        async def begin() -> None:
            self._traffic = asyncio.ensure_future(self.demo.traffic.run())

        self._do(begin())

    def drain(self) -> Account:
        """Stop the service in the middle of everything, and draw up the account."""
        traffic = self._traffic
        assert traffic is not None
        self._traffic = None

        async def drain() -> None:
            os.kill(self.demo.addresses.service_pid, signal.SIGTERM)
            await traffic  # it ends when nobody has answered for a while
            await self._running.__aexit__(None, None, None)

        self._do(drain())
        assert self.demo.account is not None
        return self.demo.account

    def close(self) -> None:
        """End what is still there."""

        async def close() -> None:
            if self._traffic is not None:
                self.demo.traffic.stop()
                await self._traffic
            with suppress(RuntimeError):  # it has been left already
                await self._running.__aexit__(None, None, None)

        try:
            self._do(close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


@dataclass
class Stack:
    """Everything on its feet."""

    folder: Path
    targets: dict[str, list[str]]
    collector: Program
    store: Program
    """Jaeger's process; `jaeger` is what it answers."""
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
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith(f"{metric}{{") and label in line
        )

    @property
    def completed(self) -> float:
        return self.told("outlive_runs_total", 'outcome="completed"')

    @property
    def bad(self) -> float:
        return sum(self.told("outlive_runs_total", f'outcome="{outcome}"') for outcome in BAD)

    @property
    def left_rooms(self) -> float:
        return self.told("outlive_disconnects_total", 'route="/rooms/{room}"')

    def flows(self, start: float, end: float | None = None) -> list[dict[str, Any]]:
        """Disconnect flows from rooms that began in a time."""
        return self.jaeger.find(SERVICE, start, end, operation=ROOM)

    def firing(self) -> set[Alert]:
        return {
            (labels["alertname"], labels["severity"], labels.get("task", ""))
            for alert in self.prometheus.alerts()
            if alert["state"] == "firing"
            for labels in [alert["labels"]]
        }


@contextmanager
def stack_in(folder: Path) -> Iterator[Stack]:
    """Start all programs, the service and the partner."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as ending:
        store, store_at = jaeger(folder, url)
        gateway, gateway_at = collector(
            folder, JAEGER_OTLP_ENDPOINT=store_at["otlp"], TRACES_REQUESTS_PERCENT="50"
        )
        for program in (store, gateway):
            ending.callback(program.stop)
            program.start()
        play = Play()
        ending.callback(play.close)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", gateway_at["otlp"])
            patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
            # As in docker-compose.yml: for longer than a step of the dashboards.
            patch.setenv("SHUTDOWN_DELAY", "6")
            # Not the usual ones: when this service has gone, the traffic must not find that of another test.
            ports = free_ports(2)
            patch.setattr(demo, "SERVICE_PORT", ports[0])
            patch.setattr(demo, "PARTNER_PORT", ports[1])
            play.start()
        stack = Stack(
            folder,
            {
                "outlive": [play.demo.addresses.service.removeprefix("http://")],
                "collector": [gateway_at["metrics"]],
                "span_metrics": [gateway_at["spans"]],
                "jaeger": [store_at["metrics"]],
                "prometheus": [f"127.0.0.1:{port}"],
            },
            gateway,
            store,
            Prometheus(ending.enter_context(httpx.Client(base_url=url, timeout=20.0))),
            Jaeger(ending.enter_context(httpx.Client(base_url=store_at["query"], timeout=20.0))),
            store_at["otlp"],
            play,
        )
        # The last, or it would miss its targets for a moment, and say so.
        prometheus_files(folder)
        stack.tell_targets()
        metric_store = prometheus(folder, port)
        ending.callback(metric_store.stop)
        metric_store.start()
        yield stack


# All is well.


@dataclass
class Healthy:
    """Traffic without faults."""

    firing: set[Alert]
    latencies: list[float]
    """Of plain requests, in seconds."""
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


def be_healthy(stack: Stack) -> Healthy:
    """Let traffic come until every task has done its work, and for no less time than an outage."""
    metrics = stack.prometheus
    stack.play.begin_traffic()
    until(lambda: metrics.value("sum(up)") == 5, why="all targets are up")
    began = time.monotonic()
    with probed(stack) as latencies:
        until(
            lambda: (
                metrics.value('count(outlive_runs_total{outcome="completed"} > 0)') == len(TASKS)
                and metrics.value('sum(outlive_runs_total{outcome="cancelled"})') > 5
                and time.monotonic() - began > OUTAGE
            ),
            60,
            "every task has completed runs, and somebody came back in time",
        )
    return Healthy(stack.firing(), latencies, stack.bad)


# A part of the pipeline is away.


@dataclass
class Outage:
    """What was seen while something was away."""

    start: float
    end: float
    """In seconds since the epoch."""
    firing: set[Alert]
    latencies: list[float]
    completed: float
    """Runs."""
    left_rooms: float
    grown: int
    """Of the service's memory, in bytes."""
    collector: int
    """The most memory that the Collector held, in bytes."""
    counted: tuple[float, float]
    """All that is counted here happened between these two moments; `start` and `end` are a little closer."""


def quantile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100)[round(share * 100) - 1]


def outage(stack: Stack, begin: Callable[[], object], end: Callable[[], object]) -> Outage:
    """Let something be away for a while, and wait until traces reach Jaeger again."""
    service = stack.play.demo.addresses.service_pid
    counted_from = time.time()
    memory, completed, left_rooms = resident(service), stack.completed, stack.left_rooms
    begin()
    start = time.time()
    firing: set[Alert] = set()
    collector_memory = 0

    def passed() -> bool:
        nonlocal collector_memory
        firing.update(stack.firing())
        collector_memory = max(collector_memory, stack.collector.memory)
        return time.time() - start > OUTAGE

    with probed(stack) as latencies:
        until(passed, OUTAGE + 5, pause=0.25)
    seen = Outage(
        start,
        time.time(),
        firing,
        latencies,
        stack.completed - completed,
        stack.left_rooms - left_rooms,
        resident(service) - memory,
        max(collector_memory, stack.collector.memory),
        (counted_from, time.time()),
    )
    end()
    back = time.time()
    until(lambda: stack.flows(back), why="traces of what came after it are in Jaeger")
    until(
        lambda: ("OutliveTargetDown", "ticket", "") not in stack.firing(), why="everything is scraped again"
    )
    return seen


def caught_up(stack: Stack, seen: Outage) -> bool:
    """Whether Jaeger has the flows of all rooms that were left in an outage."""
    return len(stack.flows(*seen.counted)) >= seen.left_rooms


def go_through_outages(stack: Stack) -> dict[str, Outage]:
    gateway, store = stack.collector, stack.store

    def refuse() -> None:
        gateway.crash()
        gateway.start(COLLECTOR_MEMORY_LIMIT_MIB="1")

    def accept() -> None:
        gateway.crash()
        gateway.start()

    seen = {"jaeger hung": outage(stack, store.hang, store.go_on)}
    # Here already, since Jaeger holds its traces in memory and crashes next.
    until(lambda: caught_up(stack, seen["jaeger hung"]), why="Jaeger gets what it missed while it hung")
    seen["jaeger crashed"] = outage(stack, store.crash, store.start)
    seen["collector hung"] = outage(stack, gateway.hang, gateway.go_on)
    seen["collector crashed"] = outage(stack, gateway.crash, gateway.start)
    # Last, since its alert looks back for five minutes.
    seen["collector refusing"] = outage(stack, refuse, accept)
    return seen


# Faults.


@dataclass
class Trouble:
    """The time of the injected faults."""

    start: float
    moment: float
    """When everything that should fire does. In seconds since the epoch."""
    bad_before: float
    firing: set[Alert]
    troubled: Program


def otlp_span(name: str, seconds: float = 0.01, status: int = 0, **attributes: str) -> dict[str, Any]:
    """A span that is a trace of its own, in OTLP's JSON; in the attributes' names `_` stands for `.`."""
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
            {"key": key.replace("_", "."), "value": {"stringValue": value}}
            for key, value in attributes.items()
        ],
    }


def send(otlp: str, service: str, *spans: dict[str, Any]) -> None:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    traces = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}
    httpx.post(f"{otlp}/v1/traces", json=traces, timeout=20.0).raise_for_status()


@contextmanager
def trouble_in(stack: Stack) -> Iterator[Trouble]:
    """A partner that fails, hangs and takes its time; an app in which all else goes wrong; a Collector that drops."""
    start, bad_before = time.time(), stack.bad
    stack.play.faults(FAULTS)
    with ExitStack() as ending:
        leaky, leaky_at = collector(
            stack.folder,
            "leaky",
            JAEGER_OTLP_ENDPOINT=f"127.0.0.1:{free_ports(1)[0]}",
            JAEGER_RETRY_FOR="10s",
            JAEGER_QUEUE_SPANS="512",
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

        def flood() -> None:
            # More at once than `num_traces`, than the queue, and than anybody takes.
            for _ in range(7):
                send(leaky_at["otlp"], "lost", *(otlp_span("lost") for _ in range(3_000)))

        flood()
        # The Collector's counters begin with their first number, and only a second one has a rate.
        until(
            lambda: stack.prometheus.query(
                "otelcol_processor_tail_sampling_sampling_trace_dropped_too_early_total"
            ),
            why="the Collector tells of traces that it dropped",
        )
        flood()
        client = ending.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}"))
        until(
            lambda: stack.prometheus.query('outlive_runs_total{task="takes_for_ever"}'),
            why="the troubled app is scraped before its trouble begins",
        )
        client.post("/stick").raise_for_status()
        client.post("/rush").raise_for_status()

        def fires() -> bool:
            client.post("/block").raise_for_status()
            client.post("/fail")
            send(leaky_at["otlp"], "lost", otlp_span("lost"))
            return stack.firing() >= EXPECTED

        with suppress(AssertionError):  # which alerts are missing is for a test to tell
            until(fires, 90)
        yield Trouble(start, time.time(), bad_before, stack.firing(), troubled)


# The drain.


@dataclass
class Drained:
    """The service stopped in the middle of everything."""

    account: Account
    firing: set[Alert]
    moment: float
    """When Prometheus had seen it, in seconds since the epoch."""


def drain(stack: Stack, trouble: Trouble) -> Drained:
    account = stack.play.drain()
    with suppress(AssertionError):
        until(lambda: stack.firing() >= AFTER_DRAIN)
    firing, moment = stack.firing(), time.time()
    # A deploy: the same address, another process.
    trouble.troubled.stop()
    trouble.troubled.start()
    until(
        lambda: stack.prometheus.query("changes(process_start_time_seconds[20s] offset 3s) > 0"),
        why="Prometheus sees the restart",
    )
    return Drained(account, firing, moment)
