"""Servers side by side: messages, requests and streams a second, the slowest of them, and the CPU time of each."""

import asyncio
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median, quantiles

from benchmarks.applications import ALONE, BOTH_OWN, CONTRIB, DRESSES, NATIVE, OUTLIVE, PLAIN, SPAN
from benchmarks.load import KINDS, Asking, connect, drive
from benchmarks.processes import loop_factory
from benchmarks.servers import server

CONNECTIONS = 8
ROUNDS = 4
"""With the same processes. From one to the next of the same app the CPU time of a request differs by some hundredths, which
no number of rounds would even out."""

# Like with like: where one has a span of the server, the other has it too.
COMPARED = (
    (ALONE, PLAIN),
    (OUTLIVE, SPAN),
    (OUTLIVE, CONTRIB),
    (OUTLIVE, NATIVE),
    (BOTH_OWN, NATIVE),
    (OUTLIVE, PLAIN),
)


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
    """One dress, and what was measured of it."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.p99s: list[float] = []
        self.cpus: list[float] = []
        self._port = 0
        self._connected: list[Asking] = []

    async def connect(self, kind: str, port: int) -> None:
        """Open the connections to a new server, and let it get warm."""
        self._port = port
        self._connected = await connect(kind, port, CONNECTIONS)
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


async def _measure(kind: str, lanes: dict[str, Lane], ports: dict[str, int], seconds: float) -> None:
    for dress, lane in lanes.items():
        await lane.connect(kind, ports[dress])
    order = list(lanes.values())
    for number in range(ROUNDS):
        for place in range(len(order)):
            await order[(number + place) % len(order)].go(seconds)


def measure(processes: int, seconds: float) -> tuple[list[Served], list[Compared]]:
    """Measure each dress in so many processes, one after the other, for so many seconds in each round."""
    served, compared = [], []
    for kind in KINDS:
        lanes = {dress: Lane() for dress in DRESSES}
        for _ in range(processes):
            with ExitStack() as stack:
                ports = {dress: stack.enter_context(server("applications", dress)) for dress in DRESSES}
                with asyncio.Runner(loop_factory=loop_factory("uvloop")) as runner:
                    runner.run(_measure(kind, lanes, ports, seconds))
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
