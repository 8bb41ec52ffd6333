"""What a drain takes that has so many runs to finish, each of which could end at once."""

import asyncio
import logging
import sys
from dataclasses import dataclass
from statistics import median
from time import process_time

from benchmarks.contenders.contender import Telemetry
from benchmarks.contenders.outlive import open_outlive
from benchmarks.processes import answer, ask
from outlive import Outcome

IN_FLIGHT = (100, 1_000, 10_000, 100_000)


@dataclass(frozen=True)
class Drain:
    """A drain with so many runs in flight."""

    in_flight: int
    milliseconds: float
    """Of CPU time, from its start to the closed state; the median of all rounds."""
    microseconds_a_run: float


async def _drain(in_flight: int) -> float:
    ends = asyncio.Event()
    async with open_outlive(Telemetry.SAMPLED, max_running=1_000_000) as outlive:

        @outlive.task(timeout=60.0)
        async def held() -> None:
            await ends.wait()

        for _ in range(in_flight):
            held.submit()
        await asyncio.sleep(0)
        began = process_time()
        asyncio.get_running_loop().call_soon(ends.set)
    took = process_time() - began
    counts = outlive.counts
    if counts.outcomes[Outcome.COMPLETED] != in_flight or counts.running:
        raise RuntimeError(f"{in_flight} runs were in flight, and the drain left {counts}")
    return took


def measure(in_flight: tuple[int, ...], rounds: int) -> list[Drain]:
    """Drain in a process of its own for each."""
    found = []
    for number in in_flight:
        seconds = median(ask("drain", number, rounds))
        found.append(Drain(number, seconds * 1000, seconds / number * 1e6))
    return found


def main(in_flight: str, rounds: str) -> None:
    """Measure in this process."""
    logging.getLogger("outlive").setLevel(logging.ERROR)
    answer([asyncio.run(_drain(int(in_flight))) for _ in range(int(rounds))])


if __name__ == "__main__":
    main(*sys.argv[1:])
