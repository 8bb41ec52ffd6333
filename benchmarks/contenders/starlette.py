"""Starlette's BackgroundTask."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.background import BackgroundTask

from benchmarks.contenders.contender import Contender, Telemetry, Ways, Work


@asynccontextmanager
async def _background(work: Work, _telemetry: Telemetry) -> AsyncGenerator[Ways]:
    async def awaited() -> None:
        await BackgroundTask(work)()

    yield Ways(awaited)


BACKGROUND = Contender(
    "Starlette's BackgroundTask",
    "a shield, a deadline, a task of its own, outcomes, telemetry, bounds, a drain",
    (Telemetry.OFF,),
    _background,
)
