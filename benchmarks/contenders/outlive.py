"""Outlive: a task, and a scope."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from benchmarks.contenders.contender import TIMEOUT, Contender, Telemetry, Ways, Work
from outlive import Outcome, Outlive


@asynccontextmanager
async def open_outlive(telemetry: Telemetry, max_running: int = 1_000) -> AsyncGenerator[Outlive]:
    """An Outlive on an app that has been started."""
    outlive = Outlive(
        max_running=max_running,
        registry=CollectorRegistry(),
        tracer_provider=telemetry.provider(),
        telemetry=telemetry is not Telemetry.OFF,
    )
    app = FastAPI()
    outlive.install(app)
    async with app.router.lifespan_context(app):
        yield outlive


@asynccontextmanager
async def _task(work: Work, telemetry: Telemetry) -> AsyncGenerator[Ways]:
    async with open_outlive(telemetry) as outlive:

        @outlive.task(timeout=TIMEOUT, name="work")
        async def task() -> None:
            await work()

        async def submitted(number: int) -> None:
            for _ in range(number):
                task.submit()

        yield Ways(task, submitted, lambda: outlive.counts.outcomes[Outcome.COMPLETED])


@asynccontextmanager
async def _scope(work: Work, telemetry: Telemetry) -> AsyncGenerator[Ways]:
    async with open_outlive(telemetry) as outlive:

        async def awaited() -> None:
            async with outlive.scope("work", timeout=TIMEOUT):
                await work()

        yield Ways(awaited, None, lambda: outlive.counts.outcomes[Outcome.COMPLETED])


TASK = Contender("Outlive", "nothing", tuple(Telemetry), _task)
SCOPE = Contender("Outlive, scope", "what a task does that a block in place can't", tuple(Telemetry), _scope)
