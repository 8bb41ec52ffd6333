"""What a scrape costs with so many tasks, and what the event loop feels of it."""

import asyncio
import logging
import socket
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from statistics import median
from time import process_time, thread_time
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from benchmarks.contenders.contender import Telemetry
from benchmarks.processes import answer, ask
from outlive import Outlive
from outlive.telemetry import metrics
from outlive.telemetry.series import Buckets

TASKS = (10, 100, 1_000)
ACCEPT = "application/openmetrics-text; version=1.0.0"
LOOK = 0.002
"""Seconds from one look at the event loop's lag to the next: more often than in a service, so that none is missed."""
SCRAPER = """
import os, sys, urllib.request
if hasattr(os, "sched_setaffinity"):
    # Or Linux lets it have the server's own processor for a while, when a write has woken it.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
for line in sys.stdin:
    request = urllib.request.Request(line.strip(), headers={"accept": %r})
    print(len(urllib.request.urlopen(request).read()), flush=True)
"""


@dataclass(frozen=True)
class Scrape:
    """A scrape of an app with so many tasks, each of which has run."""

    tasks: int
    lines: int
    milliseconds: float
    """Of the service's CPU time, from the request to the last byte; the median of all rounds."""
    first_milliseconds: float
    """Of the process's first scrape."""
    encoder: float
    """prometheus-client's encoder with the same series, in milliseconds."""
    looks: int
    """How often the event loop's lag was measured, in the seconds with a scrape and as often in those without."""
    late: int
    """How often it was above 5 ms in the seconds with a scrape."""
    late_anyway: int
    """And in those without."""


class Service:
    """An app with tasks, and its registry."""

    def __init__(self, tasks: int) -> None:
        self.registry = CollectorRegistry()
        self.outlive = Outlive(
            max_running=10_000, registry=self.registry, tracer_provider=Telemetry.SAMPLED.provider()
        )
        self.app = FastAPI()
        self.outlive.install(self.app)
        self._tasks = [
            self.outlive.task(timeout=5.0, name=f"task_{number}")(_work) for number in range(tasks)
        ]

    async def run_each(self) -> None:
        """Change every task's series, as a busy second does."""
        for task in self._tasks:
            await task(0.0)

    def lag(self) -> tuple[int, int]:
        """How often the event loop's lag was measured, and how often it was above 5 ms."""
        # Not through the registry: to read all of it would itself hold up the event loop.
        lag: Buckets = metrics._families[self.registry].lag  # noqa: SLF001
        _, numbers, _ = lag.numbers()
        looks = int(numbers[-2])
        return looks, looks - int(numbers[metrics.LAG_SECONDS.index(0.005)])


async def _work(_seconds: float) -> None:
    await asyncio.sleep(0)


async def _measure(tasks: int, rounds: int) -> Scrape:
    service = Service(tasks)
    encode, _ = choose_encoder(ACCEPT)
    encoder = []
    async with service.app.router.lifespan_context(service.app):
        for _ in range(rounds):
            await service.run_each()
            began = thread_time()
            text = encode(service.registry)
            encoder.append((thread_time() - began) * 1000)
    (first, *later), (looks, late, late_anyway) = await _served(service, rounds)
    return Scrape(tasks, text.count(b"\n"), median(later), first, median(encoder), looks, late, late_anyway)


async def _served(service: Service, rounds: int) -> tuple[list[float], tuple[int, int, int]]:
    """The CPU time of each scrape in milliseconds; and looks at the event loop, those late, and those late anyway."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(service.app, log_level="error"))
        serving = asyncio.create_task(server.serve([listening]))
        scraper = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            SCRAPER % ACCEPT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert scraper.stdin is not None
        assert scraper.stdout is not None
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/metrics\n".encode()
        took = []
        for _ in range(rounds):
            await service.run_each()
            began_cpu = process_time()
            scraper.stdin.write(address)
            await scraper.stdout.readline()
            took.append((process_time() - began_cpu) * 1000)
        metrics.LAG_INTERVAL = LOOK
        await asyncio.sleep(0.5)  # by then it looks as often as that
        found = {True: [0, 0], False: [0, 0]}
        for number in range(rounds * 2):
            scraping = number % 2 == 0
            began = service.lag()
            if scraping:
                scraper.stdin.write(address)
                await scraper.stdout.readline()
            await asyncio.sleep(0.25)
            looks, late = service.lag()
            found[scraping][0] += looks - began[0]
            found[scraping][1] += late - began[1]
        scraper.stdin.close()
        await scraper.wait()
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await serving
    return took, (found[True][0], found[True][1], found[False][1])


def measure(tasks: tuple[int, ...], rounds: int) -> list[Scrape]:
    """Measure in a process of its own for each."""
    return [Scrape(**ask("scrape", number, rounds)) for number in tasks]


def main(tasks: str, rounds: str) -> Any:
    """Measure in this process."""
    logging.getLogger("outlive").setLevel(logging.ERROR)
    answer(asdict(asyncio.run(_measure(int(tasks), int(rounds)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
