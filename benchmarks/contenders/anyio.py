"""AnyIO's shielded scope."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from time import perf_counter

import anyio

from benchmarks.contenders.contender import TIMEOUT, Contender, Telemetry, Ways, Work
from benchmarks.contenders.floor import Told


@asynccontextmanager
async def _scope(work: Work, telemetry: Telemetry) -> AsyncGenerator[Ways]:
    async def bounded() -> None:
        with anyio.move_on_after(TIMEOUT, shield=True):
            await work()

    if telemetry is Telemetry.OFF:
        yield Ways(bounded)
    else:
        told = Told(telemetry.provider())
        yield Ways(lambda: told.around(bounded, perf_counter()), None, told.count)


SCOPE = Contender(
    "AnyIO's shielded scope",
    "a task of its own: a native cancellation pierces it; outcomes, bounds, a drain",
    tuple(Telemetry),
    _scope,
)
