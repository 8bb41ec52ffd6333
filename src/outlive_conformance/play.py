"""Playing the groups of the matrix, several at once, against one partner."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from outlive_conformance.matrix import Group
from outlive_conformance.trial import Trial
from outlive_conformance.verdict import Verdict, judge
from outlive_service.demo import Process

PARTNER = {"PARTNER_MAX_RECORDS": "1000000"}


async def play(
    groups: Iterable[Group], *, at_once: int = 3, tell: Callable[[Verdict], None] = lambda _: None
) -> list[Verdict]:
    """Play the groups, and give the verdicts in their order.

    Parameters:
        at_once: so many servers run at the same time.
        tell: called with each verdict as it comes.

    Raises:
        ExceptionGroup: of a DemoError or ProcessError where a program couldn't be started.
    """
    turn = asyncio.Semaphore(at_once)

    async def one(group: Group, partner_url: str) -> Verdict:
        async with turn:
            verdict = judge(group, await Trial(group, partner_url).play())
        tell(verdict)
        return verdict

    with TemporaryDirectory(prefix="outlive-conformance-") as folder:
        partner = await Process.start(
            ("-m", "outlive", "partner"), "PARTNER_PORT", 0, PARTNER, Path(folder) / "partner.log"
        )
        try:
            async with asyncio.TaskGroup() as playing:
                tasks = [playing.create_task(one(group, partner.url)) for group in groups]
        finally:
            await partner.stop()
    return [task.result() for task in tasks]
