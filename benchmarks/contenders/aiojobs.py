"""aiojobs, with OpenTelemetry's asyncio instrumentation and prometheus-client."""

import asyncio
import os
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter
from typing import Any

import aiojobs
from opentelemetry.instrumentation.asyncio import AsyncioInstrumentor
from opentelemetry.metrics import MeterProvider as AnyMeterProvider
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from benchmarks.contenders.contender import TIMEOUT, Contender, Telemetry, Ways, Work
from benchmarks.contenders.floor import Told

NAMES = "OTEL_PYTHON_ASYNCIO_COROUTINE_NAMES_TO_TRACE"


class Instrumented:
    """asyncio's functions, replaced for the time of a measurement: they would slow down the others too.

    Parameters:
        telemetry: for the sampler.
        metrics: whether the instrumentation's own metrics, a counter and a histogram, have a provider.
    """

    def __init__(self, telemetry: Telemetry, *, metrics: bool) -> None:
        self._provider = telemetry.provider()
        self._meters: AnyMeterProvider = NoOpMeterProvider()
        if metrics:
            self._meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)

    def __enter__(self) -> None:
        os.environ[NAMES] = "traced"
        AsyncioInstrumentor().instrument(tracer_provider=self._provider, meter_provider=self._meters)

    def __exit__(self, *_error: object) -> None:
        AsyncioInstrumentor().uninstrument()
        del os.environ[NAMES]


@asynccontextmanager
async def _aiojobs(work: Work, telemetry: Telemetry, *, metrics: bool) -> AsyncGenerator[Ways]:
    told = None if telemetry is Telemetry.OFF else Told(telemetry.provider())

    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT):
            await work()

    async def traced(submitted: float) -> None:
        # The instrumentation makes the span around this; its ids aren't known here, so there is no exemplar.
        assert told is not None
        started = perf_counter()
        told.running.inc()
        told.wait.observe(started - submitted)
        try:
            await bounded()
        finally:
            told.running.dec()
            told.runs.inc()
            if not metrics:
                told.duration.observe(perf_counter() - started)

    def coroutine() -> Coroutine[Any, Any, None]:
        return bounded() if told is None else traced(perf_counter())

    async with aiojobs.Scheduler(limit=None) as scheduler:

        async def awaited() -> None:
            job = await scheduler.spawn(coroutine())
            await job.wait()

        async def submitted(number: int) -> None:
            for _ in range(number):
                await scheduler.spawn(coroutine())

        if told is None:
            yield Ways(awaited, submitted)
        else:
            instrumented = Instrumented(telemetry, metrics=metrics)
            yield Ways(awaited, submitted, told.count, lambda: instrumented)


LEFT_OUT = (
    "exemplars, attributes and outcomes of spans; rejection instead of waiting; outcomes of shielded jobs whose caller "
    "was cancelled"
)
AIOJOBS = Contender(
    "aiojobs + asyncio instrumentation",
    LEFT_OUT,
    tuple(Telemetry),
    partial(_aiojobs, metrics=True),
)
SPANS = Contender(
    "the same, its spans only",
    LEFT_OUT + "; the instrumentation's metrics, which here go nowhere",
    (Telemetry.UNSAMPLED, Telemetry.SAMPLED),
    partial(_aiojobs, metrics=False),
)
