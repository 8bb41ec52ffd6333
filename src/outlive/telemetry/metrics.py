"""Prometheus metrics: counters, gauges and histograms of runs, connections, disconnects and drains."""

import asyncio
import os
import platform
from collections.abc import Callable, Iterator
from contextvars import Context
from importlib.metadata import version
from typing import Any, Literal
from weakref import WeakKeyDictionary

from opentelemetry.trace import SpanContext
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.multiprocess import MultiProcessCollector

from outlive.observer import (
    ConnectionDetails,
    DisconnectDetails,
    Limits,
    Observer,
    RunDetails,
    RunEnd,
    TaskDetails,
)
from outlive.outcomes import Cause, ConnectionRejection, Outcome, Transport
from outlive.telemetry.series import Encode, Series

Exemplar = Callable[[object], SpanContext | None]
"""Gives the span of a run, a connection or a disconnect, if its trace is kept."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONNECTION_SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
LAG_INTERVAL = 0.25
"""Seconds from one look at the event loop's lag to the next."""
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})


def multiprocess() -> bool:
    """Whether several processes share their metrics through files, as prometheus-client's documentation tells."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


def scrape(registry: CollectorRegistry, encode: Encode, form: str) -> Iterator[bytes]:
    """Everything in the registry as text, in parts: of this process, or the sum over all workers.

    Parameters:
        registry: what to scrape.
        encode: prometheus-client's encoder of the text format that the scraper wants.
        form: its content type.
    """
    families = _families.get(registry)
    if multiprocess():
        summed = CollectorRegistry()
        MultiProcessCollector(summed)  # type: ignore[no-untyped-call]  # prometheus-client leaves this one untyped
        yield encode(summed)
    elif families is None:
        yield encode(registry)
    else:
        yield from families.series.render(registry, encode, form)


class Families:
    """The metric families. Made once for a registry, however many Outlives write to it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.series = Series()
        shared = multiprocess()

        def counter(name: str, text: str, *labels: str) -> Any:
            return (
                Counter(name, text, labels, registry=registry)
                if shared
                else self.series.counter(name, text, *labels)
            )

        def gauge(
            name: str, text: str, *labels: str, workers: Literal["livesum", "livemax"] = "livesum"
        ) -> Any:
            if shared:
                return Gauge(name, text, labels, registry=registry, multiprocess_mode=workers)
            family = self.series.gauge(name, text, *labels)
            return family if labels else family.labels()

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Any:
            if shared:
                return Histogram(name, text, labels, registry=registry, buckets=buckets)
            family = self.series.histogram(name, text, buckets, *labels)
            return family if labels else family.labels()

        self.runs = counter("outlive_runs", "Runs that have ended, by outcome.", "task", "outcome")
        self.run_duration = histogram(
            "outlive_run_duration_seconds", "Execution time of runs.", SECONDS, "task", "outcome"
        )
        self.run_wait = histogram(
            "outlive_run_wait_seconds", "Time from the submission of a run to its start.", SECONDS, "task"
        )
        self.running = gauge("outlive_runs_running", "Runs that execute now.", "task")
        self.pending = gauge("outlive_runs_pending", "Runs that wait for a slot now.", "task")
        self.stuck = gauge(
            "outlive_runs_stuck",
            "Runs that were cancelled and haven't ended within the cancel grace.",
            "task",
        )
        self.timeout = gauge(
            "outlive_run_timeout_seconds", "The declared timeout of a task's runs.", "task", workers="livemax"
        )
        self.limit = gauge("outlive_runs_limit", "The most runs that may execute or wait at once.", "kind")
        self.absorbed = counter(
            "outlive_absorbed_cancellations",
            "Cancellations that hit a waiting caller and would have killed the run without the shield.",
            "task",
        )
        self.connections_rejected = counter(
            "outlive_connections_rejected", "Connections that weren't let in, by reason.", "reason"
        )
        self.connections = gauge(
            "outlive_connections", "Connections that are open now.", "route", "transport"
        )
        self.connection_duration = histogram(
            "outlive_connection_duration_seconds",
            "Time from the start of a connection to its end.",
            CONNECTION_SECONDS,
            "route",
            "transport",
        )
        self.disconnects = counter(
            "outlive_disconnects",
            "Connections that ended before the server had finished them.",
            "route",
            "transport",
            "cause",
        )
        self.tail = histogram(
            "outlive_disconnect_tail_seconds",
            "Time from a disconnect to the end of the last run that it caused.",
            SECONDS,
            "route",
            "transport",
        )
        self.http_duration = histogram(
            "outlive_http_request_duration_seconds",
            "Time from the start of a request to the last byte of its response.",
            SECONDS,
            "route",
            "method",
            "status",
        )
        self.draining = gauge("outlive_draining", "1 while the process drains, else 0.", workers="livemax")
        self.drain_duration = gauge(
            "outlive_drain_duration_seconds", "How long the last drain took.", workers="livemax"
        )
        self.lag = histogram(
            "outlive_event_loop_lag_seconds",
            "How much later than asked for the event loop calls back.",
            LAG_SECONDS,
        )
        if not shared:
            registry.register(self.series)
        build = {"version": version("outlive"), "python": platform.python_version()}
        if shared:
            # An Info can't be summed over processes; a gauge of the same name and labels reads the same.
            Gauge(
                "outlive_build_info",
                "Versions.",
                tuple(build),
                registry=registry,
                multiprocess_mode="mostrecent",
            ).labels(**build).set(1)
        else:
            Info("outlive_build", "Versions.", registry=registry).info(build)


_families: WeakKeyDictionary[CollectorRegistry, Families] = WeakKeyDictionary()


class _TaskSeries:
    """One task's series, looked up once: `labels()` takes 0.35 µs, as long as an update itself."""

    def __init__(self, families: Families, task: TaskDetails) -> None:
        self.runs = {outcome: families.runs.labels(task.name, outcome) for outcome in Outcome}
        self.duration = {outcome: families.run_duration.labels(task.name, outcome) for outcome in Outcome}
        self.wait = families.run_wait.labels(task.name)
        self.running = families.running.labels(task.name)
        self.pending = families.pending.labels(task.name)
        self.stuck = families.stuck.labels(task.name)
        self.absorbed = families.absorbed.labels(task.name)
        families.timeout.labels(task.name).set(task.timeout)


class _ConnectionSeries:
    """The series of one route and transport; they exist at 0 from the first connection on."""

    def __init__(self, families: Families, route: str, transport: Transport) -> None:
        self.route = route
        self.open = families.connections.labels(route, transport)
        self.duration = families.connection_duration.labels(route, transport)
        self.disconnects = {cause: families.disconnects.labels(route, transport, cause) for cause in Cause}
        self.tail = families.tail.labels(route, transport)


class Metrics(Observer):
    """Counts and measures into a Prometheus registry.

    Label values come from declarations and route templates only, so no client can create a series.
    """

    def __init__(self, registry: CollectorRegistry, exemplar: Exemplar) -> None:
        # A process that makes its app twice, as tests do, must not fail on "duplicated timeseries".
        self._families = _families.get(registry) or _families.setdefault(registry, Families(registry))
        # Exemplars can't be summed over processes.
        self._exemplar: Exemplar = (lambda _: None) if multiprocess() else exemplar
        self._rejected = {
            reason: self._families.connections_rejected.labels(reason) for reason in ConnectionRejection
        }
        self._tasks: dict[TaskDetails, _TaskSeries] = {}
        self._routes: dict[tuple[str, Transport], _ConnectionSeries] = {}
        self._requests: dict[tuple[str, str, int | None], Any] = {}
        self._open: dict[ConnectionDetails, _ConnectionSeries] = {}
        self._lag: asyncio.TimerHandle | None = None

    def task_declared(self, task: TaskDetails) -> None:
        self._tasks[task] = _TaskSeries(self._families, task)

    def opened(self, limits: Limits) -> None:
        self._families.limit.labels("running").set(limits.max_running)
        self._families.limit.labels("pending").set(limits.max_pending)
        self.closed()  # an Outlive without a lifespan is opened again on each new event loop
        self._watch_loop(asyncio.get_running_loop())

    def closed(self) -> None:
        self._families.draining.set(0)
        if self._lag is not None:
            self._lag.cancel()

    def _watch_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        clean = Context()

        def look(due: float) -> None:
            now = loop.time()
            self._families.lag.observe(max(0.0, now - due))
            wake(now + LAG_INTERVAL)

        def wake(due: float) -> None:
            self._lag = loop.call_at(due, look, due, context=clean)

        wake(loop.time() + LAG_INTERVAL)

    def run_queued(self, run: RunDetails) -> None:
        self._tasks[run.task].pending.inc()

    def run_started(self, run: RunDetails, wait: float, queued: bool) -> None:
        series = self._tasks[run.task]
        if queued:
            series.pending.dec()
        series.running.inc()
        series.wait.observe(wait)

    def cancellation_absorbed(self, run: RunDetails) -> None:
        self._tasks[run.task].absorbed.inc()

    def run_stuck(self, run: RunDetails, stack: str) -> None:
        self._tasks[run.task].stuck.inc()

    def run_unstuck(self, run: RunDetails) -> None:
        self._tasks[run.task].stuck.dec()

    def run_ended(self, run: RunDetails, end: RunEnd) -> None:
        series = self._tasks[run.task]
        series.runs[end.outcome].inc()
        if end.duration is not None:
            series.running.dec()
            series.duration[end.outcome].observe(end.duration, self._exemplar(run))
        elif end.outcome is not Outcome.REJECTED:
            series.pending.dec()

    def connection_rejected(self, reason: ConnectionRejection) -> None:
        self._rejected[reason].inc()

    def connection_identified(self, connection: ConnectionDetails, route: str, transport: Transport) -> None:
        before = self._open.get(connection)
        if before is not None:
            before.open.dec()
        self._open[connection] = series = self._series(route, transport)
        series.open.inc()

    def _series(self, route: str, transport: Transport) -> _ConnectionSeries:
        series = self._routes.get((route, transport))
        if series is None:
            series = self._routes[route, transport] = _ConnectionSeries(self._families, route, transport)
        return series

    def disconnected(self, disconnect: DisconnectDetails) -> None:
        self._series(disconnect.route, disconnect.transport).disconnects[disconnect.cause].inc()

    def connection_closed(
        self, connection: ConnectionDetails, duration: float, status: int | None, last_byte: float | None
    ) -> None:
        ended = self._open.pop(connection)
        ended.open.dec()
        ended.duration.observe(duration)
        if last_byte is not None:
            method = connection.method if connection.method in METHODS else "_OTHER"
            key = (ended.route, method, status)
            series = self._requests.get(key)
            if series is None:
                series = self._requests[key] = self._families.http_duration.labels(
                    ended.route, method, "none" if status is None else status
                )
            series.observe(last_byte, self._exemplar(connection))

    def flow_ended(self, disconnect: DisconnectDetails, tail: float) -> None:
        self._series(disconnect.route, disconnect.transport).tail.observe(tail, self._exemplar(disconnect))

    def drain_started(self) -> None:
        self._families.draining.set(1)

    def drain_ended(self, duration: float, cancelled: int, stuck: list[str]) -> None:
        self._families.drain_duration.set(duration)
