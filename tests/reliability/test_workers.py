"""Several workers that share their metrics through files, and one of them killed."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from programs import free_ports, until
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from outlive_service.account import read_counters
from outlive_service.demo import PARTNER_COMMAND, Process, read_database
from outlive_service.sights import CompletionVisit, ExportVisit, RoomVisit
from outlive_service.traffic import Traffic

WORKERS = 4
# Rooms live in one process, so users of one that meet in another worker aren't known there: no harm to the account.
CLIENTS = 30


def text_of(folder: Path, pids: Callable[[int], bool]) -> str:
    """The metrics that the files of some workers add up to."""
    chosen = [str(file) for file in folder.glob("*.db") if pids(pid_of(file))]

    class OfThose(MultiProcessCollector):
        def collect(self) -> Any:
            return self.merge(chosen, accumulate=True)  # type: ignore[no-untyped-call]

    registry = CollectorRegistry()
    OfThose(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry).decode()


def pid_of(file: Path) -> int:
    return int(file.stem.rpartition("_")[2])


def at_rest(url: str) -> str:
    """The metrics when no more runs end; the gauges still have what the dead one left."""
    before: Any = None
    while True:
        text = httpx.get(url, timeout=30.0).text
        runs = read_counters(text).runs
        if runs == before:
            return text
        before = runs
        time.sleep(4.0)  # longer than the grace of a departure


def total(runs: Mapping[str, Mapping[str, int]]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for by_outcome in runs.values():
        outcomes.update(by_outcome)
    return outcomes


def events(log: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="the workers are found in /proc")
@pytest.mark.reliability(
    "fault", "4 workers share PROMETHEUS_MULTIPROC_DIR under load, and one is killed (SIGKILL)"
)
async def test_one_of_four_workers_is_killed(tmp_path: Path, result: Callable[[str], None]) -> None:
    shared = tmp_path / "metrics"
    shared.mkdir()
    partner = await Process.start(
        PARTNER_COMMAND, "PARTNER_PORT", 0, {"PARTNER_NOTICES_LATENCY": "0.3"}, tmp_path / "partner.log"
    )
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    log = tmp_path / "service.log"
    database = f"sqlite:///{tmp_path / 'outlive.db'}"
    environment = {
        "PROMETHEUS_MULTIPROC_DIR": str(shared),
        "DATABASE_URL": database,
        "PARTNER_URL": partner.url,
        "UPSTREAM_URL": partner.url,
        "LOG_FORMAT": "json",
    }
    command = ["--factory", "outlive_service.app:service", "--timeout-graceful-shutdown", "5", "--workers"]
    with log.open("wb") as output:
        service = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "uvicorn", *command, str(WORKERS), "--port", str(port),
            env={**os.environ, **environment}, stdout=output, stderr=output, stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    try:

        def workers() -> set[int]:
            return {int(file.stem.rpartition("_")[2]) for file in shared.glob("counter_*.db")}

        await asyncio.to_thread(
            until, lambda: len(workers()) == WORKERS and httpx.get(f"{url}/readyz").is_success
        )
        traffic = Traffic(url, CLIENTS, 3, pace=0.5)
        visits = asyncio.create_task(traffic.run(None))
        await asyncio.wait([visits], timeout=4.0)
        victim = min(workers())
        os.kill(victim, signal.SIGKILL)
        await asyncio.wait([visits], timeout=4.0)
        traffic.stop()
        await visits
        scraped = await asyncio.to_thread(at_rest, f"{url}/metrics")
    finally:
        service.terminate()
        await asyncio.wait_for(service.wait(), 60)
    async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
        records = (await client.get(f"{partner.url}/records")).json()
    await partner.stop()

    # The survivors, and whoever took the dead one's place: each closed with its account, and the files say the same.
    survivors = read_counters(text_of(shared, lambda pid: pid != victim))
    text = text_of(shared, lambda pid: pid == victim)
    dead = read_counters(text)
    closed = events(log, "closed")
    assert len(closed) >= WORKERS - 1
    accounts: Counter[str] = Counter()
    for account in closed:
        assert account["submitted"] == sum(account["outcomes"].values())
        accounts.update(account["outcomes"])
    assert total(survivors.runs) == accounts
    # The sum that any worker gave has what the dead one had counted.
    assert total(read_counters(scraped).runs) == accounts + total(dead.runs)
    # What it had begun is told as still running or waiting, and that is the most that can be missing.
    begun = {task: dead.submitted[task] - sum(runs.values()) for task, runs in dead.runs.items()}
    held = sum(float(value) for value in re.findall(r"^outlive_connections{.*} (.*)$", text, re.MULTILINE))
    stored = await read_database(database)
    missing = {
        "transcripts": {visit.session for visit in traffic.sights if isinstance(visit, RoomVisit)}
        - {row.session for row in stored.sessions},
        "answers": {visit.id for visit in traffic.sights if isinstance(visit, CompletionVisit)}
        - {row.id for row in stored.answers},
        "leases": {visit.id for visit in traffic.sights if isinstance(visit, ExportVisit)}
        - {row.id for row in stored.exports if row.released},
    }
    lost = sum(map(len, missing.values()))
    assert lost <= sum(begun.values()) + held
    assert len(records["notices"]) > 0
    result(
        f"{total(read_counters(scraped).runs).total():,} outcomes in the sum, {total(dead.runs).total():,} of them the dead worker's; the equation is "
        f"exact for the {len(closed)} that closed; the dead one held {held:.0f} connections and {sum(begun.values())} open runs, "
        f"and {lost} of what clients were owed is missing, as SIGKILL can't be survived"
    )
