#!/usr/bin/env python3
"""Measure what the live page costs the service while it is looked at, under the load of the demo.

    tools/live_cost.py [SECONDS]    60 by default

The difference between two runs of the demo, with viewers and without, drowns in how much the demo's people vary. So the
processor time of the feed's own steps is added up: all that is done to make its messages and to send them to five viewers.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator
from functools import wraps
from pathlib import Path
from timeit import timeit
from typing import Any, ParamSpec, TypeVar

import httpx
import uvicorn

from outlive import Outcome
from outlive.live import feed, page
from outlive.live.history import INTERVAL, History
from outlive_service.app import service
from outlive_service.demo import PARTNER, PARTNER_PORT, SERVICE, Process, is_free
from outlive_service.settings import Settings, load_settings

P = ParamSpec("P")
R = TypeVar("R")
CLIENTS = 40
SEED = 7
VIEWERS = 5
SECONDS = 60.0


class Meter:
    """Processor time, added up."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def call(self, function: Callable[P, R]) -> Callable[P, R]:
        """Count each call of the function, in whatever thread."""

        @wraps(function)
        def metered(*args: P.args, **kwargs: P.kwargs) -> R:
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - began

        return metered

    def steps(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """Count each step of the coroutine that the function gives, and not what it waits for."""

        @wraps(function)
        async def metered(*args: P.args, **kwargs: P.kwargs) -> R:
            return await Steps(function(*args, **kwargs), self)

        return metered


class Steps(Awaitable[R]):
    """An awaitable, one step after the other."""

    def __init__(self, inner: Awaitable[R], meter: Meter) -> None:
        self._inner = inner
        self._meter = meter

    def __await__(self) -> Generator[Any, Any, R]:
        steps = self._inner.__await__()
        send = self._meter.call(steps.send)
        throw = self._meter.call(steps.throw)
        step, sent = send, None
        while True:
            try:
                awaited = step(sent)
            except StopIteration as end:
                return end.value
            try:
                step, sent = send, (yield awaited)
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's to bear
                step, sent = throw, error


async def view(url: str) -> None:
    """Read the feed until cancelled."""
    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream("GET", f"{url}/outlive/feed") as response,
    ):
        async for _ in response.aiter_raw():
            pass


async def traffic(url: str, seconds: float) -> asyncio.subprocess.Process:
    """Send the demo's people, from a process of their own."""
    options = ("--clients", str(CLIENTS), "--seed", str(SEED), "--seconds", f"{seconds:g}")
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "outlive", "traffic", url, *options, stdout=asyncio.subprocess.DEVNULL
    )


async def main(seconds: float, folder: Path) -> None:
    """Be the service, measure, and print what was found."""
    meter = Meter()
    feed.Feed._show = meter.steps(feed.Feed._show)
    feed.Feed._tick = meter.steps(feed.Feed._tick)
    page.series = meter.call(page.series)

    partner = await Process.start("partner", "PARTNER_PORT", PARTNER_PORT, PARTNER, folder / "partner.log")
    os.environ |= SERVICE | {
        "PARTNER_URL": partner.url,
        "UPSTREAM_URL": partner.url,
        "DATABASE_URL": f"sqlite:///{folder / 'cost.db'}",
        "LOG_LEVEL": "error",
    }
    port = 8000 if is_free(8000) else 0
    server = uvicorn.Server(
        uvicorn.Config(service(load_settings(Settings)), port=port, log_config=None, access_log=False)
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    people = await traffic(url, seconds + 15)
    await asyncio.sleep(10)
    viewers = [asyncio.create_task(view(url)) for _ in range(VIEWERS)]
    await asyncio.sleep(2)
    before, began = meter.seconds, time.monotonic()
    await asyncio.sleep(seconds)
    share = (meter.seconds - before) / (time.monotonic() - began)
    for viewer in viewers:
        viewer.cancel()
    await asyncio.gather(*viewers, return_exceptions=True)
    await people.wait()
    server.should_exit = True
    await serving
    await partner.stop()

    history = History(lambda: dict.fromkeys(Outcome, 0))
    sample = timeit(history.start, number=10_000) / 10_000
    history.stop()
    print(f"{VIEWERS} viewers: {100 * share:.2f} % of a core")
    print(f"nobody looks: {1e6 * sample:.1f} microseconds every {INTERVAL:g} seconds")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="outlive-cost-") as temporary:
        asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS, Path(temporary)))
