"""Over the bounds: what is rejected is told, and costs neither its caller nor the others their time."""

import asyncio
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from outlive import Outcome, Outlive

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
