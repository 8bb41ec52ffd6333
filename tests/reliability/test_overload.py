"""Over the bounds: what is rejected is told, and costs neither its caller nor the others their time."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from outlive import Outcome, Outlive
from outlive_service.account import Account
from outlive_service.demo import Demo, read_gauges
from outlive_service.faults import partner_goes_wrong
from outlive_service.storm import Storm

TURNS = 1_000
RUNNING = 50
REJECTED_A_TURN = 20


@pytest.mark.anyio
@pytest.mark.reliability(
    "overload", "20 runs too many are submitted at each of 1,000 turns of the event loop"
)
async def test_the_rejected_take_no_turn_from_those_that_run(result: Callable[[str], None]) -> None:
    outlive = Outlive(registry=CollectorRegistry(), max_running=RUNNING, max_pending=0)
    turns = [0] * RUNNING

    @outlive.task(timeout=600.0)
    async def work(number: int) -> None:
        while turns[number] < TURNS:
            turns[number] += 1
            await asyncio.sleep(0)

    outlive._runner.open()
    running = [work.submit(number) for number in range(RUNNING)]
    for _ in range(TURNS):
        rejected = [work.submit(0) for _ in range(REJECTED_A_TURN)]
        assert {run.outcome for run in rejected} == {Outcome.REJECTED}
        await asyncio.sleep(0)
    # The caller has had as many turns as there were, and so had each of those that ran.
    assert turns == [TURNS] * RUNNING
    await asyncio.gather(*running)
    outcomes = outlive.counts.outcomes
    assert outcomes[Outcome.REJECTED] == TURNS * REJECTED_A_TURN
    assert outcomes[Outcome.COMPLETED] == RUNNING
    outlive._runner.close()
    result(
        f"{outcomes[Outcome.REJECTED]:,} rejected; each of the {RUNNING} that ran got every one of its {TURNS:,} turns"
    )


ALL_HANG = {"notices": {"hang_rate": 1.0}}


async def storm_of(size: int, demo: Demo, look: Callable[[str], None]) -> list[dict[str, Any]]:
    """Let so many go at once while the partner hangs, looking at the metrics meanwhile; give the disconnect flows."""
    over = asyncio.Event()

    async def keep_looking(client: httpx.AsyncClient) -> None:
        while not over.is_set():
            look((await client.get(f"{demo.addresses.service}/metrics")).text)
            await asyncio.sleep(0.05)

    async with httpx.AsyncClient(trust_env=False, timeout=60.0) as client, partner_goes_wrong(demo, ALL_HANG):
        looking = asyncio.create_task(keep_looking(client))
        storm = Storm(demo.addresses.service, size)
        after = await storm.run()
        over.set()
        await looking
        demo.traffic.sights += storm.sights
        assert after.errors == []
        return list(
            (await client.get(f"{demo.addresses.service}/outlive/flows", params={"most": 9_999})).json()[
                "flows"
            ]
        )


def judged(demo: Demo) -> Account:
    account = demo.account
    assert account is not None
    assert account.errors == ()
    assert account.balanced
    return account


def run_ends(folder: Path) -> list[dict[str, Any]]:
    """The lines of the service's log that tell of a run's end, in order."""
    lines = [json.loads(line) for line in (folder / "service.log").read_text().splitlines()]
    return [line for line in lines if line["event"].startswith("run ended")]


@pytest.mark.anyio
@pytest.mark.reliability(
    "overload", "300 go at once, the partner hangs, and there is room for 20 runs and 30 in line"
)
async def test_at_the_bounds_the_rejected_are_told_everywhere(
    tmp_path: Path, result: Callable[[str], None]
) -> None:
    size, running, pending = 300, 20, 30
    bounds = {"MAX_RUNNING": str(running), "MAX_PENDING": str(pending), "FLOWS_KEPT": "1000"}
    looks: list[dict[str, float]] = []
    demo = Demo(1, 1, {}, service=bounds, folder=tmp_path)
    async with demo.running():
        flows = await storm_of(size, demo, lambda text: looks.append(read_gauges(text)))
    account = judged(demo)
    rejected = account.outcomes["rejected"]
    assert rejected >= 3 * size - 3 * (running + pending)
    reasons = Counter(line["reason"] for line in run_ends(tmp_path) if line["outcome"] == "rejected")
    spans = [
        span
        for flow in flows
        for span in flow["spans"]
        if span["attributes"].get("outlive.outcome") == "rejected"
    ]
    assert reasons.total() == len(spans) == rejected
    assert set(reasons) <= {"full", "task_full"}
    assert all(span["error"] for span in spans)
    # The bounds hold, and the handlers didn't wait for what was in their way.
    assert max(look["outlive_runs_running"] for look in looks) <= running
    assert max(look["outlive_runs_pending"] for look in looks) <= pending
    assert any(look["outlive_runs_running"] and not look["websocket"] for look in looks)
    result(
        f"{account.submitted:,} runs, {rejected:,} rejected: as many in the metrics, in the log (“{next(iter(reasons))}”) and "
        f"as spans; never more than {running} ran and {pending} waited; all {size} handlers had returned while those still ran"
    )


@pytest.mark.anyio
@pytest.mark.reliability(
    "overload", "100 go at once and the partner hangs: with and without a limit of its task's own"
)
async def test_a_limit_of_its_own_keeps_a_slow_partner_from_starving_the_saves(
    tmp_path: Path, result: Callable[[str], None]
) -> None:
    size, ended = 100, {}
    for limit in (10, 50):
        folder = tmp_path / str(limit)
        folder.mkdir()
        service = {
            "MAX_RUNNING": "50",
            "PARTNER_MAX_RUNNING": str(limit),
            "NOTIFY_TIMEOUT": "1",
            "DEPARTURE_GRACE": "0",
        }
        demo = Demo(1, 1, {}, service=service, folder=folder)
        async with demo.running():
            await storm_of(size, demo, lambda _: None)
        account = judged(demo)
        assert account.counters.runs["save_transcript"]["completed"] == size
        tasks = [line["task"] for line in run_ends(folder)]
        last_save = len(tasks) - tasks[::-1].index("save_transcript")
        ended[limit] = tasks[:last_save].count("notify_partner")
    with_limit, without = ended[10], ended[50]
    assert with_limit < without
    result(
        f"until the last of {size} saves was done, {with_limit} notices had run into their time-out with a limit of 10 of 50 "
        f"slots, and {without} without"
    )
