"""taskiq's in-memory broker, with its middlewares for Prometheus and OpenTelemetry."""

import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from taskiq import InMemoryBroker, TaskiqMiddleware
from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware
from taskiq.middlewares.prometheus_middleware import PrometheusMiddleware

from benchmarks.contenders.contender import TIMEOUT, Contender, Telemetry, Ways, Work


@cache
def _prometheus() -> TaskiqMiddleware:
    # It has one registry for the process, and switches on files for several processes, which nobody here wants.
    with TemporaryDirectory() as folder:
        middleware = PrometheusMiddleware(Path(folder))
    del os.environ["PROMETHEUS_MULTIPROC_DIR"]
    return middleware


@asynccontextmanager
async def _taskiq(work: Work, telemetry: Telemetry) -> AsyncGenerator[Ways]:
    logging.getLogger("taskiq").setLevel(logging.WARNING)
    waiting, detached = (InMemoryBroker(await_inplace=inplace) for inplace in (True, False))
    for broker in (waiting, detached):
        if telemetry is not Telemetry.OFF:
            broker.add_middlewares(OpenTelemetryMiddleware(telemetry.provider()), _prometheus())
        await broker.startup()

    async def bounded() -> None:
        await work()

    awaited_task, submitted_task = (
        broker.register_task(bounded, "work", timeout=TIMEOUT) for broker in (waiting, detached)
    )

    async def awaited() -> None:
        await (await awaited_task.kiq()).get_result()

    async def submitted(number: int) -> None:
        for _ in range(number):
            await submitted_task.kiq()

    try:
        yield Ways(awaited, submitted)
    finally:
        for broker in (waiting, detached):
            await broker.shutdown()


TASKIQ = Contender(
    "taskiq, in memory",
    "a shield, exemplars, outcomes, a drain; it has two spans for each run, and a message in between",
    tuple(Telemetry),
    _taskiq,
)
