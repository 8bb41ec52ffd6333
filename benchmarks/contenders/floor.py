"""The floor: what a run costs that is written by hand, for this one task, by somebody who knows how."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from benchmarks.contenders.contender import TIMEOUT, Contender, Telemetry, Ways, Work

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Told:
    """The telemetry that Outlive makes of a run, by hand: series looked up once, one span with the same attributes."""

    def __init__(self, provider: TracerProvider) -> None:
        registry = CollectorRegistry()
        labels = ("task", "outcome")
        self.runs = Counter("runs", "Runs.", labels, registry=registry).labels("work", "completed")
        self.duration = Histogram("duration", "Time.", labels, registry=registry, buckets=SECONDS).labels(
            "work", "completed"
        )
        self.wait = Histogram("wait", "Time.", ("task",), registry=registry, buckets=SECONDS).labels("work")
        self.running = Gauge("running", "Runs.", ("task",), registry=registry).labels("work")
        self.tracer = provider.get_tracer("floor")
        self.registry = registry

    async def around(self, call: Callable[[], Awaitable[Any]], submitted: float) -> None:
        """Make the call and tell of it."""
        started = perf_counter()
        attributes: dict[str, str | float] = {"outlive.task": "work", "outlive.timeout": TIMEOUT}
        with self.tracer.start_as_current_span("work", attributes=attributes) as span:
            self.running.inc()
            self.wait.observe(started - submitted)
            try:
                await call()
            finally:
                self.running.dec()
                self.runs.inc()
                context = span.get_span_context()
                exemplar = None
                if context.trace_flags.sampled:
                    exemplar = {
                        "trace_id": trace.format_trace_id(context.trace_id),
                        "span_id": trace.format_span_id(context.span_id),
                    }
                    span.set_attributes(
                        {
                            "outlive.outcome": "completed",
                            "outlive.wait": started - submitted,
                            "outlive.absorbed_cancellations": 0,
                        }
                    )
                self.duration.observe(perf_counter() - started, exemplar)

    def count(self) -> float:
        """How many runs it knows of."""
        return self.registry.get_sample_value("runs_total", {"task": "work", "outcome": "completed"}) or 0.0


def _detached(tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
    # The event loop keeps weak references only.
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _ways(run: Callable[[], Any], told: Told | None) -> Ways:
    tasks: set[asyncio.Task[None]] = set()

    async def awaited() -> None:
        await asyncio.shield(asyncio.create_task(run()))

    async def submitted(number: int) -> None:
        for _ in range(number):
            _detached(tasks, asyncio.create_task(run()))

    return Ways(awaited, submitted, None if told is None else told.count)


@asynccontextmanager
async def _bare(work: Work, _telemetry: Telemetry) -> AsyncGenerator[Ways]:
    async def run() -> None:
        async with asyncio.timeout(TIMEOUT):
            await work()

    yield _ways(run, None)


@asynccontextmanager
async def _floor(work: Work, telemetry: Telemetry) -> AsyncGenerator[Ways]:
    told = Told(telemetry.provider())

    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT):
            await work()

    yield _ways(lambda: told.around(bounded, perf_counter()), told)


BARE = Contender(
    "bare shield + timeout",
    "telemetry, whatever the others have; outcomes, bounds, a drain, an owner",
    tuple(Telemetry),
    _bare,
)
FLOOR = Contender(
    "the floor, by hand",
    "outcomes other than completed, bounds, a drain, disconnect flows, logs",
    (Telemetry.UNSAMPLED, Telemetry.SAMPLED),
    _floor,
)
