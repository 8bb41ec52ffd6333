"""Servers side by side: messages, requests and streams a second, the slowest of them, and the CPU time of each."""

import asyncio
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median, quantiles

from benchmarks.applications import ALONE, CONTRIB, DRESSES, NATIVE, OUTLIVE, PLAIN, SPAN
from benchmarks.load import KINDS, Asking, connect, drive
from benchmarks.processes import loop_factory
from benchmarks.servers import server

CONNECTIONS = 8


# Like with like: where one has a span of the server, the other has it too.
COMPARED = ((ALONE, PLAIN), (OUTLIVE, SPAN), (OUTLIVE, NATIVE), (OUTLIVE, CONTRIB), (OUTLIVE, PLAIN))


@dataclass(frozen=True)
class Served:
    """One dress and one kind of answers; the medians of all rounds."""

    kind: str
    dress: str
    per_second: float
    p99_milliseconds: float
    cpu_microseconds: float
    """Of the server, for each answer."""


@dataclass(frozen=True)
class Compared:
    """One dress as a multiple of another: the medians of the rounds' ratios."""

    kind: str
    dress: str
    other: str
    per_second: float
    p99: float
    cpu: float


class Lane:
    """One server, and what was measured of it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.rates: list[float] = []
        self.p99s: list[float] = []
        self.cpus: list[float] = []
        self._connected: list[Asking] = []

    async def connect(self, kind: str) -> None:
        """Open the connections, and let the server get warm."""
        self._connected = await connect(kind, self._port, CONNECTIONS)
        await drive(self._connected, 0.2)

    async def go(self, seconds: float) -> None:
        """Measure one round."""
        before = self._cpu()
        rate, latencies = await drive(self._connected, seconds)
        self.cpus.append((self._cpu() - before) / len(latencies) * 1e6)
        self.rates.append(rate)
        self.p99s.append(quantiles(latencies, n=100)[98] * 1000)

    def _cpu(self) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/cpu") as response:
            return float(response.read())


async def _measure(kind: str, lanes: dict[str, Lane], rounds: int, seconds: float) -> None:
    for lane in lanes.values():
        await lane.connect(kind)
    order = list(lanes.values())
    for number in range(rounds):
        for place in range(len(order)):
            await order[(number + place) % len(order)].go(seconds)


def measure(rounds: int, seconds: float) -> tuple[list[Served], list[Compared]]:
    """Measure all dresses in rounds, in which each has so many seconds."""
    served, compared = [], []
    for kind in KINDS:
        with ExitStack() as stack:
            lanes = {dress: Lane(stack.enter_context(server("applications", dress))) for dress in DRESSES}
            with asyncio.Runner(loop_factory=loop_factory("uvloop")) as runner:
                runner.run(_measure(kind, lanes, rounds, seconds))
        served += [
            Served(kind, dress, median(lane.rates), median(lane.p99s), median(lane.cpus))
            for dress, lane in lanes.items()
        ]
        for dress, other in COMPARED:
            ours, theirs = lanes[dress], lanes[other]
            compared.append(
                Compared(
                    kind,
                    dress,
                    other,
                    _ratio(ours.rates, theirs.rates),
                    _ratio(ours.p99s, theirs.p99s),
                    _ratio(ours.cpus, theirs.cpus),
                )
            )
    return served, compared


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return median(our / their for our, their in zip(ours, theirs, strict=True))
