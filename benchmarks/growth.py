"""What one more run costs, in time and in memory, while so many others execute."""

import asyncio
import logging
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from statistics import median
from time import thread_time
from typing import Any

from benchmarks.contenders.contender import Telemetry, Work
from benchmarks.contenders.outlive import open_outlive
from benchmarks.processes import answer, ask, command

LOADS = (100, 1_000, 10_000, 100_000)
BATCH = 200
HELD_FOR = 3_600.0
"""The deadline of those that execute meanwhile, in seconds."""

Start = Callable[[Callable[[], Awaitable[object]]], object]
"""Starts a piece of work that nobody waits for."""


@dataclass(frozen=True)
class Growth:
    """One contender while so many runs execute."""

    contender: str
    running: int
    microseconds: float
    """Of one more run, awaited; the median of all rounds."""
    slower: float
    """As a multiple of the same contender's with the least running: the median of the rounds' ratios."""
    bytes_a_run: float
    """Of each that executes, beyond what a bare asyncio task of the same coroutine takes."""


@asynccontextmanager
async def _outlive(telemetry: Telemetry) -> AsyncGenerator[tuple[Start, Callable[[], Awaitable[object]]]]:
    async with open_outlive(telemetry, max_running=1_000_000) as outlive:

        @outlive.task(timeout=HELD_FOR)
        async def held(work: Callable[[], Awaitable[object]]) -> None:
            await work()

        work = Work()

        @outlive.task(timeout=5.0)
        async def short() -> None:
            await work()

        yield held.submit, short


@asynccontextmanager
async def _bare(deadlines: bool) -> AsyncGenerator[tuple[Start, Callable[[], Awaitable[object]]]]:
    tasks: set[asyncio.Task[object]] = set()
    work = Work()

    async def held(work: Callable[[], Awaitable[object]]) -> None:
        if deadlines:
            async with asyncio.timeout(HELD_FOR):
                await work()
        else:
            await work()

    def start(work: Callable[[], Awaitable[object]]) -> None:
        task = asyncio.create_task(held(work))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def bounded() -> None:
        async with asyncio.timeout(5.0):
            await work()

    yield start, lambda: asyncio.shield(asyncio.create_task(bounded()))


CONTENDERS: dict[str, Callable[[], Any]] = {
    "Outlive, sampled": lambda: _outlive(Telemetry.SAMPLED),
    "Outlive, telemetry off": lambda: _outlive(Telemetry.OFF),
    "bare shield + timeout": lambda: _bare(deadlines=True),
}


async def _hold(start: Start, running: int) -> asyncio.Event:
    go = asyncio.Event()
    for _ in range(running):
        start(go.wait)
    await asyncio.sleep(0)
    return go


async def _end(go: asyncio.Event) -> None:
    go.set()
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0.01)


async def _lane(contender: str, running: int) -> None:
    """Measure a batch for each line on standard input, so that several processes can take turns."""
    async with CONTENDERS[contender]() as (start, short):
        go = await _hold(start, running)
        while sys.stdin.readline().strip():
            began = thread_time()
            for _ in range(BATCH):
                await short()
            sys.stdout.write(f"{(thread_time() - began) / BATCH * 1e6}\n")
            sys.stdout.flush()
        await _end(go)


async def _bytes(contender: str, running: int) -> float:
    async def taken(opened: Any) -> int:
        async with opened as (start, short):
            for _ in range(10):
                await short()
            before, _peak = tracemalloc.get_traced_memory()
            go = await _hold(start, running)
            after, _peak = tracemalloc.get_traced_memory()
            await _end(go)
            return after - before

    tracemalloc.start()
    bare = await taken(_bare(deadlines=False))
    return (await taken(CONTENDERS[contender]()) - bare) / running


class Process:
    """One lane in a process of its own."""

    def __init__(self, contender: str, running: int, stack: ExitStack) -> None:
        self._process = stack.enter_context(
            subprocess.Popen(
                command("growth", "lane", contender, running),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        self.microseconds: list[float] = []

    def go(self) -> float:
        """Measure one batch: microseconds a run."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


def measure(loads: tuple[int, ...], rounds: int) -> list[Growth]:
    """Measure all contenders with each load."""
    found = []
    for contender in CONTENDERS:
        with ExitStack() as stack:
            lanes = {running: Process(contender, running, stack) for running in loads}
            for _ in range(3):
                for lane in lanes.values():
                    lane.go()
            for number in range(rounds):
                for place in range(len(loads)):
                    lane = lanes[loads[(number + place) % len(loads)]]
                    lane.microseconds.append(lane.go())
        least = lanes[loads[0]].microseconds
        for running, lane in lanes.items():
            slower = median(own / first for own, first in zip(lane.microseconds, least, strict=True))
            taken = ask("growth", "bytes", contender, running)
            found.append(Growth(contender, running, median(lane.microseconds), slower, taken))
    return found


def main(what: str, contender: str, running: str) -> None:
    """Measure in this process."""
    logging.getLogger("outlive").setLevel(logging.ERROR)  # its budgets are wrong on purpose
    if what == "lane":
        asyncio.run(_lane(contender, int(running)))
    else:
        answer(asyncio.run(_bytes(contender, int(running))))


if __name__ == "__main__":
    main(*sys.argv[1:])
