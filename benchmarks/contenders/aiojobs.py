"""aiojobs, with OpenTelemetry's asyncio instrumentation and prometheus-client."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from time import perf_counter
from typing import Any

import aiojobs
from opentelemetry.instrumentation.asyncio import AsyncioInstrumentor

from benchmarks.contenders.contender import TIMEOUT, Contender, Telemetry, Ways, Work
from benchmarks.contenders.floor import Told

NAMES = "OTEL_PYTHON_ASYNCIO_COROUTINE_NAMES_TO_TRACE"


class Instrumented:
    """asyncio's functions, replaced for the time of a measurement: they would slow down the others too."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._provider = telemetry.provider()

    def __enter__(self) -> None:
        os.environ[NAMES] = "traced"
        AsyncioInstrumentor().instrument(tracer_provider=self._provider)

    def __exit__(self, *_error: object) -> None:
        AsyncioInstrumentor().uninstrument()
        del os.environ[NAMES]


@asynccontextmanager
async def _aiojobs(work: Work, telemetry: Telemetry) -> AsyncGenerator[Ways]:
    told = None if telemetry is Telemetry.OFF else Told(telemetry)

    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT):
            await work()

    async def traced(submitted: float) -> None:
        # The instrumentation makes the span; its ids aren't known here, so there is no exemplar.
        assert told is not None
        started = perf_counter()
        told.running.inc()
        told.wait.observe(started - submitted)
        try:
            await bounded()
        finally:
            told.running.dec()
            told.runs.inc()
            told.duration.observe(perf_counter() - started)

    def coroutine() -> Any:
        return bounded() if told is None else traced(perf_counter())

    async with aiojobs.Scheduler(limit=None) as scheduler:

        async def awaited() -> None:
            job = await scheduler.spawn(coroutine())
            await job.wait()

        async def submitted(number: int) -> None:
            for _ in range(number):
                await scheduler.spawn(coroutine())

        yield Ways(
            awaited,
            submitted,
            None if told is None else told.count,
            nullcontext if told is None else lambda: Instrumented(telemetry),
        )


AIOJOBS = Contender(
    "aiojobs",
    "exemplars, attributes and outcomes of spans, rejection instead of waiting, accounts of shielded jobs",
    tuple(Telemetry),
    _aiojobs,
)
