"""A soak: mixed traffic and faults that come and go for a long time, and a verdict on what must not grow.

python -m outlive_service.soak --seconds 1200
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import typer

from outlive_service.account import read_counters
from outlive_service.demo import Demo, DemoError, read_gauges
from outlive_service.faults import FAULTS

LONGEST_PHASE = 20.0
"""Seconds of one fault, at most; in a short soak each gets its share."""
ROWS = 20
"""Lines of the table over time."""
MEMORY_ROOM = 1.10
"""Memory may be so many times as high in the last third as in the second: what is cut into pieces isn't all used again."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The service's process at one moment; `seconds` since the start, memory in MB."""

    seconds: float
    fault: str
    memory: float
    descriptors: int
    threads: int
    connections: int
    running: int
    pending: int
    runs: int


@dataclass(slots=True)
class Soak:
    """What was seen, and what is wrong about it."""

    seconds: float
    clients: int
    samples: list[Sample] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    account: dict[str, Any] = field(default_factory=dict)
    tasks_left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def third(self, number: int, of: Callable[[Sample], float]) -> float:
        """The median of a value in one third of the time: 0, 1 or 2."""
        return median(
            of(sample) for sample in self.samples if int(3 * sample.seconds / self.seconds) == number
        )


def read(file: Path) -> Soak:
    """What `--out` has written."""
    kept = json.loads(file.read_text())
    return Soak(**{**kept, "samples": [Sample(**each) for each in kept["samples"]]})


def verdict(seen: Soak) -> str:
    """The account of a soak in one line."""
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in seen.account["outcomes"].items())
    return (
        f"{seen.seconds:,.0f} s, {sum(seen.faults.values())} faults of {len(seen.faults)} kinds: "
        f"{seen.account['submitted']:,} runs ({outcomes}), {seen.account['lost']} lost, "
        f"{seen.account['doubled']} doubled, {len(seen.tasks_left)} tasks left at the end"
    )


def sample(pid: int, metrics: str, seconds: float, fault: str) -> Sample:
    """Look at a process of this machine."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    gauges = read_gauges(metrics)
    return Sample(
        round(seconds, 1),
        fault,
        int(status["VmRSS"].split()[0]) / 1000,
        len(list(Path(f"/proc/{pid}/fd").iterdir())),
        int(status["Threads"]),
        int(sum(gauges.get(transport, 0) for transport in ("websocket", "sse", "http"))),
        int(gauges.get("outlive_runs_running", 0)),
        int(gauges.get("outlive_runs_pending", 0)),
        sum(read_counters(metrics).submitted.values()),
    )


async def soak(seconds: float, clients: int, seed: int) -> Soak:
    """Run the service, its partner and traffic for so many seconds, with one fault after the other.

    Raises:
        DemoError: a process could not be started or stopped.
    """
    seen = Soak(seconds, clients)
    faults: Counter[str] = Counter()
    demo = Demo(clients, seed, {}, service={"LIVE": "false"}, partner={"PARTNER_MAX_RECORDS": "10000000"})
    async with demo.running():
        visits = asyncio.create_task(demo.traffic.run(seconds))
        began = time.monotonic()
        phase = min(LONGEST_PHASE, seconds / (2 * len(FAULTS)))
        async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:

            async def look(fault: str) -> None:
                metrics = await client.get(f"{demo.addresses.service}/metrics")
                elapsed = time.monotonic() - began
                seen.samples.append(sample(demo.addresses.service_pid, metrics.text, elapsed, fault))

            for name, fault in cycle(FAULTS.items()):
                for what, goes_wrong in ((name, fault), ("none", None)):
                    # A fault, and then the time to recover from it.
                    if goes_wrong is None:
                        await asyncio.wait([visits], timeout=phase)
                    else:
                        faults[what] += 1
                        async with goes_wrong(demo):
                            await asyncio.wait([visits], timeout=phase)
                    await look(what)
                if visits.done():
                    break
            await visits
    assert demo.account is not None
    seen.faults = dict(faults)
    seen.account = demo.account.as_json()
    seen.tasks_left = demo.stopped["tasks_left"]
    seen.problems = list(problems(seen))
    return seen


def problems(seen: Soak) -> Iterator[str]:
    """What a soak must not show, a sentence each."""
    account = seen.account
    yield from account["errors"]
    if account["submitted"] != sum(account["outcomes"].values()):
        yield f"{account['submitted']} runs submitted, but {sum(account['outcomes'].values())} outcomes"
    if seen.tasks_left:
        yield f"tasks left at the end: {', '.join(seen.tasks_left)}"
    for what, of, room in (
        ("memory in MB", lambda sample: sample.memory, MEMORY_ROOM),
        ("file descriptors", lambda sample: sample.descriptors - sample.connections, 1.25),
        ("threads", lambda sample: sample.threads, 1.25),
    ):
        before, after = seen.third(1, of), seen.third(2, of)
        if after > before * room + 2:
            yield f"{what} grew from {before:g} in the second third of the time to {after:g} in the last"


def over_time(seen: Soak) -> Iterator[str]:
    """The samples, at most `ROWS` of them, for a person."""
    yield "   s  fault                 MB  descriptors  threads  connections  running  pending    runs"
    every = max(1, len(seen.samples) // ROWS)
    for at in seen.samples[::every]:
        yield (
            f"{at.seconds:4.0f}  {at.fault:18} {at.memory:5.0f}  {at.descriptors:11}  {at.threads:7}  "
            f"{at.connections:11}  {at.running:7}  {at.pending:7}  {at.runs:6}"
        )


def main(
    seconds: Annotated[float, typer.Option(min=10.0, help="How long the traffic lasts.")] = 1_200.0,
    clients: Annotated[int, typer.Option(min=1, help="Simulated people.")] = 40,
    seed: Annotated[int, typer.Option(help="Makes the people's choices repeatable.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Write everything that was measured there, as JSON.", metavar="FILE")
    ] = None,
) -> None:
    """Soak the service: mixed traffic, faults that come and go, a table over time and a verdict."""
    try:
        seen = asyncio.run(soak(seconds, clients, seed))
    except DemoError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    for line in over_time(seen):
        typer.echo(line)
    if out is not None:
        out.write_text(json.dumps(asdict(seen), indent=1) + "\n")
    typer.echo(verdict(seen))
    for problem in seen.problems:
        typer.echo(f"wrong: {problem}", err=True)
    if seen.problems:
        raise typer.Exit(1)
    typer.echo("memory, descriptors and threads are flat, no task is left, and every run has one outcome")


if __name__ == "__main__":
    typer.run(main)
