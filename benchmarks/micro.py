"""The cost of one run, awaited and submitted: every contender in turn, in rounds of a few milliseconds each.

The rounds are what makes a noisy machine bearable: each gives one ratio of Outlive to each contender, measured within the
same moment, and the median of all ratios is what counts. pyperf, which measures one contender after the other, comes to
the same ratios while nothing else runs, and to others each time when something does.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median
from time import thread_time
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.contender import Telemetry, Ways, Work
from benchmarks.processes import LOOPS, answer, ask, loop_factory

BATCH = 100
"""Runs in a row of one contender."""


@dataclass(frozen=True)
class Cost:
    """What a run of one contender costs in one setting."""

    loop: str
    telemetry: Telemetry
    way: str
    contender: str
    microseconds: float
    """The median of all rounds."""
    outlive: float
    """Outlive's cost as a multiple of it: the median of the rounds' ratios."""
    rounds: int


class Lane:
    """One contender in one setting."""

    def __init__(self, name: str, ways: Ways, way: str, work: Work) -> None:
        self.name = name
        self._ways = ways
        self._submitted = way == "submitted"
        self._work = work
        self._wanted = 0
        self.microseconds: list[float] = []

    async def go(self, *, measured: bool) -> None:
        """Make one batch of runs."""
        self._wanted += BATCH
        with self._ways.surroundings():
            began = thread_time()
            await (self._submit() if self._submitted else self._await())
            took = thread_time() - began
        if measured:
            self.microseconds.append(took / BATCH * 1e6)

    async def _await(self) -> None:
        awaited: Callable[[], Awaitable[object]] = self._ways.awaited
        for _ in range(BATCH):
            await awaited()

    async def _submit(self) -> None:
        assert self._ways.submitted is not None
        await self._ways.submitted(BATCH)
        await self._work.wait_for(self._wanted)

    def check(self) -> None:
        """Compare what was asked for with what was done, and with what the telemetry knows.

        Raises:
            RuntimeError: they differ.
        """
        told = self._wanted if self._ways.told is None else self._ways.told()
        if not self._wanted == self._work.done == told:
            raise RuntimeError(
                f"{self.name}: {self._wanted} runs were asked for, {self._work.done} done, {told} told of"
            )


async def _setting(telemetry: Telemetry, way: str, rounds: int) -> dict[str, list[float]]:
    async with AsyncExitStack() as stack:
        lanes = []
        for contender in CONTENDERS:
            if telemetry in contender.telemetry:
                work = Work()
                ways = await stack.enter_async_context(contender.start(work, telemetry))
                if way == "awaited" or ways.submitted is not None:
                    lanes.append(Lane(contender.name, ways, way, work))
        for _ in range(3):
            for lane in lanes:
                await lane.go(measured=False)
        for number in range(rounds):
            # Each goes first as often as the others.
            for place in range(len(lanes)):
                await lanes[(number + place) % len(lanes)].go(measured=True)
        for lane in lanes:
            lane.check()
    return {lane.name: lane.microseconds for lane in lanes}


def measure(processes: int, rounds: int) -> list[Cost]:
    """Measure in so many processes for each event loop, with so many rounds in each."""
    costs = []
    for loop in LOOPS:
        answers: list[dict[str, Any]] = [ask("micro", loop, rounds) for _ in range(processes)]
        for setting in answers[0]:
            telemetry, way = setting.split()
            lanes: dict[str, list[float]] = {}
            for each in answers:
                for name, microseconds in each[setting].items():
                    lanes.setdefault(name, []).extend(microseconds)
            ours = lanes["Outlive"]
            costs += [
                Cost(loop, Telemetry(telemetry), way, name, median(theirs), ratio(ours, theirs), len(theirs))
                for name, theirs in lanes.items()
            ]
    return costs


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """The median of the rounds' ratios."""
    return median(our / their for our, their in zip(ours, theirs, strict=True))


def main(loop: str, rounds: str) -> None:
    """Measure in this process."""
    logging.getLogger("outlive").setLevel(logging.WARNING)
    measured = {}
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        for telemetry in Telemetry:
            for way in ("awaited", "submitted"):
                measured[f"{telemetry} {way}"] = runner.run(_setting(telemetry, way, int(rounds)))
    answer(measured)


if __name__ == "__main__":
    main(*sys.argv[1:])
