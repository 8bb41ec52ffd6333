"""Each fault under load: real processes, real sockets, a real database; the account at the end is the judge."""

import asyncio
import json
import re
import resource
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from postgresql import PostgreSQL

from outlive_service.account import Account, Counters, read_counters
from outlive_service.demo import SERVICE_COMMAND, Demo
from outlive_service.faults import ERRORS, database_is_locked, partner_goes_wrong, partner_stops

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="limits of other processes are set by prlimit"),
]

TROUBLED = Path(__file__).parent / "troubled_service.py"
CLIENTS = 30
NO_FAULTS = {
    f"PARTNER_{kind}_{fault}": "0"
    for kind in ("NOTICES", "CHARGES", "COMPLETIONS")
    for fault in ("ERROR_RATE", "HANG_RATE")
}
Fault = Callable[[Demo], AbstractAsyncContextManager[None]]


class Load:
    """The service, its partner and traffic, for one fault: before it, with it and after it.

    Parameters:
        folder: where the service's files and its log are.
        full: whether it is for the report, and takes the seconds that it tells.
    """

    def __init__(self, folder: Path, *, full: bool) -> None:
        self._folder = folder
        self._before, self.meanwhile, self._afterwards = (2.0, 6.0, 3.0) if full else (1.0, 4.0, 2.0)

    async def bear(
        self, fault: Fault, *, meanwhile: float | None = None, troubled: bool = False, **service: str
    ) -> Account:
        """Have traffic before, with and after a fault; give the account, once it says that nothing was lost or left."""
        command = [str(TROUBLED)] if troubled else SERVICE_COMMAND
        demo = Demo(
            CLIENTS, 7, {}, service=service, partner=NO_FAULTS, pace=0.5, command=command, folder=self._folder
        )
        async with demo.running():
            visits = asyncio.create_task(demo.traffic.run(None))
            await asyncio.wait([visits], timeout=self._before)
            async with fault(demo):
                await asyncio.wait([visits], timeout=self.meanwhile if meanwhile is None else meanwhile)
            await asyncio.wait([visits], timeout=self._afterwards)
            demo.traffic.stop()
            await visits
        account = demo.account
        assert account is not None
        assert account.errors == ()
        assert account.balanced
        assert account.submitted == sum(account.outcomes.values())
        assert demo.stopped["tasks_left"] == []
        return account

    @property
    def words(self) -> str:
        """All that the service has logged."""
        return (self._folder / "service.log").read_text()

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines of the log that tell of one event."""
        found = [json.loads(line) for line in self.words.splitlines() if line.startswith("{")]
        return [line for line in found if line["event"] == event]


@pytest.fixture
def load(tmp_path: Path, full: bool) -> Load:
    return Load(tmp_path, full=full)


def told(account: Account, *tasks: str) -> str:
    """In words: the outcomes of all runs, or of some tasks'."""
    outcomes: Counter[str] = Counter()
    for task, by_outcome in account.counters.runs.items():
        if not tasks or task in tasks:
            outcomes.update(by_outcome)
    return ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items() if count)


def sentence(account: Account, *tasks: str) -> str:
    of = f" of {' and '.join(tasks)}" if tasks else ""
    return f"{account.submitted:,} runs, {account.lost} lost;{of} {told(account, *tasks)}"


CALLS = ("notify_partner", "bill_tokens")
SAVES = ("save_transcript", "save_answer")


@pytest.mark.parametrize(
    ("plan", "outcome"),
    [
        pytest.param(
            {"notices": {"hang_rate": 1.0}, "charges": {"hang_rate": 1.0}, "completions": {"hang_rate": 0.2}},
            "timed_out",
            marks=pytest.mark.reliability("fault", "the partner hangs: no notice and no charge is answered"),
        ),
        pytest.param(
            {"notices": {"latency": 1.0}, "charges": {"latency": 1.0}, "completions": {"latency": 1.0}},
            "completed",
            marks=pytest.mark.reliability("fault", "the partner is slow: every answer takes a second longer"),
        ),
        pytest.param(
            {
                "notices": {"reset_rate": 0.7},
                "charges": {"reset_rate": 0.7},
                "completions": {"reset_rate": 0.5},
            },
            "failed",
            marks=pytest.mark.reliability(
                "fault", "the partner resets connections: 7 of 10 notices and charges"
            ),
        ),
        pytest.param(
            {
                "notices": {"error_rate": 1.0},
                "charges": {"error_rate": 1.0},
                "completions": {"error_rate": 0.5},
            },
            "failed",
            marks=pytest.mark.reliability("fault", "the partner answers 5xx to every notice and charge"),
        ),
    ],
)
async def test_a_partner_with_bad_days(
    plan: Mapping[str, Mapping[str, float]], outcome: str, load: Load, result: Callable[[str], None]
) -> None:
    account = await load.bear(partial(partner_goes_wrong, plan=plan))
    assert sum(account.counters.runs[task][outcome] for task in CALLS) > 0
    # The others don't notice.
    for task in ("save_transcript", "save_answer", "release_export"):
        assert account.counters.told(task) == 0
    result(sentence(account, *CALLS))


@pytest.mark.reliability("fault", "the partner's process is stopped for 6 s, with its connections open")
async def test_a_partner_that_stops(load: Load, result: Callable[[str], None]) -> None:
    account = await load.bear(partner_stops)
    assert account.counters.runs["notify_partner"]["timed_out"] > 0
    assert account.counters.told("save_transcript") == 0
    result(sentence(account, *CALLS))


@pytest.mark.reliability("fault", "another process locks the database for 2 s at a time, most of the time")
async def test_a_locked_database_is_waited_for(load: Load, result: Callable[[str], None]) -> None:
    account = await load.bear(database_is_locked)
    for task in SAVES:
        assert account.counters.told(task) == 0
    result(f"{sentence(account, *SAVES)}; each save waited for the lock")


@asynccontextmanager
async def database_is_locked_until_told(demo: Demo, then: list[Counters]) -> AsyncIterator[None]:
    """Hold the writer's lock until several saves have an outcome because of it; note what was counted then."""
    metrics = f"{demo.addresses.service}/metrics"
    async with (
        database_is_locked(demo, at_a_time=60.0),
        httpx.AsyncClient(trust_env=False, timeout=30.0) as client,
        asyncio.timeout(60.0),
    ):
        while True:
            counters = read_counters((await client.get(metrics)).text)
            if sum(counters.told(task) for task in SAVES) >= 3:
                then.append(counters)
                break
            await asyncio.sleep(0.2)
        yield


@pytest.mark.reliability("fault", "another process locks the database for longer than SQLite waits")
async def test_a_database_locked_for_too_long_is_told(load: Load, result: Callable[[str], None]) -> None:
    then: list[Counters] = []
    account = await load.bear(partial(database_is_locked_until_told, then=then), meanwhile=0.0)
    for task in SAVES:
        assert account.counters.runs[task]["completed"] > then[0].runs[task]["completed"]
    result(f"{sentence(account, *SAVES)}: those that met the lock were told, and the others completed")


@asynccontextmanager
async def disk_is_full(demo: Demo) -> AsyncIterator[None]:
    """No file of the service's may grow beyond a few bytes; its log can't either."""
    unlimited = resource.prlimit(demo.service.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(demo.service.pid, resource.RLIMIT_FSIZE, (4_096, unlimited[1]))
    try:
        yield
    finally:
        resource.prlimit(demo.service.pid, resource.RLIMIT_FSIZE, unlimited)


@pytest.mark.reliability("fault", "the disk is full for the SQLite file for 6 s, and then has room again")
async def test_a_full_disk_is_told(load: Load, result: Callable[[str], None]) -> None:
    account = await load.bear(disk_is_full)
    assert account.counters.runs["save_transcript"]["failed"] > 0
    assert account.counters.runs["save_transcript"]["completed"] > 0
    errors = {
        event["error_type"]
        for task in SAVES
        for event in load.events(f"run ended: {task}")
        if event["outcome"] == "failed"
    }
    result(
        f"{sentence(account, *SAVES)}: those that met the full disk were told ({', '.join(sorted(errors))}), and the others "
        "completed"
    )


@pytest.mark.reliability("fault", "PostgreSQL is stopped at once under load, and started again after 6 s")
async def test_a_database_that_is_gone_and_back(load: Load, result: Callable[[str], None]) -> None:
    with PostgreSQL() as server:

        @asynccontextmanager
        async def database_is_gone(_demo: Demo) -> AsyncIterator[None]:
            await asyncio.to_thread(server.stop)
            try:
                yield
            finally:
                await asyncio.to_thread(server.start)

        url = f"postgresql://postgres@/postgres?host={server.folder}"
        account = await load.bear(database_is_gone, DATABASE_URL=url)
    assert sum(account.counters.told(task) for task in SAVES) > 0
    assert account.counters.runs["save_transcript"]["completed"] > 0
    result(f"{sentence(account, *SAVES)}: those that met no database were told, and the others completed")


async def ask(demo: Demo, method: str, path: str, **query: float) -> dict[str, Any]:
    """Something of the troubled service."""
    async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
        answer = await client.request(method, f"{demo.addresses.service}{path}", params=query)
    answer.raise_for_status()
    return dict(answer.json() or {})


@pytest.mark.reliability("fault", "an observer of the application raises at every single event")
async def test_an_observer_that_raises(load: Load, result: Callable[[str], None]) -> None:
    raised = 0

    @asynccontextmanager
    async def told(demo: Demo) -> AsyncIterator[None]:
        nonlocal raised
        yield
        raised = (await ask(demo, "GET", "/trouble"))["raised"]

    account = await load.bear(told, troubled=True, OBSERVER_RAISES="1")
    assert raised > account.submitted
    assert load.words.count("its further failures are not logged") == 1
    result(f"{sentence(account)}; the observer raised more than {raised:,} times, and was logged once")


@pytest.mark.reliability("fault", "the wall clock jumps an hour ahead, and then an hour back")
async def test_a_clock_that_jumps(load: Load, result: Callable[[str], None]) -> None:
    flows: list[dict[str, Any]] = []

    @asynccontextmanager
    async def jumps(demo: Demo) -> AsyncIterator[None]:
        await ask(demo, "POST", "/trouble/jump", seconds=3_600)
        await asyncio.sleep(load.meanwhile / 2)
        await ask(demo, "POST", "/trouble/jump", seconds=-3_600)
        yield
        flows.extend((await ask(demo, "GET", "/outlive/flows", most=1_000))["flows"])
        await ask(demo, "POST", "/trouble/jump", seconds=0)

    account = await load.bear(jumps, meanwhile=load.meanwhile / 2, troubled=True, FLOWS_KEPT="1000")
    # The jump is longer than every deadline, and nothing was late.
    assert sum(runs["timed_out"] for runs in account.counters.runs.values()) == 0
    tails = [flow["tail"] for flow in flows]
    assert tails
    assert min(tails) >= 0
    assert max(tails) < 600
    result(
        f"{sentence(account)}; no deadline was reached, and the tails were {min(tails):.3f} to {max(tails):.1f} s"
    )


@pytest.mark.reliability("fault", "the event loop stands still for 2 s, three times, while the partner hangs")
async def test_an_event_loop_that_is_blocked(load: Load, result: Callable[[str], None]) -> None:
    metrics = ""

    @asynccontextmanager
    async def blocked(demo: Demo) -> AsyncIterator[None]:
        nonlocal metrics
        async with partner_goes_wrong(demo, {"notices": {"hang_rate": 1.0}}):
            for _ in range(3):
                await ask(demo, "POST", "/trouble/block", seconds=2.0)
                await asyncio.sleep(1.0)
            yield
        async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
            metrics = (await client.get(f"{demo.addresses.service}/metrics")).text

    account = await load.bear(blocked, meanwhile=0.0, troubled=True)
    assert account.counters.stuck == 0
    assert "run stuck" not in load.words
    late = [
        event["duration"]
        for event in load.events("run ended: notify_partner")
        if event["outcome"] == "timed_out"
    ]
    # NOTIFY_TIMEOUT of the demo: never before its time, and after it as soon as the loop goes on.
    assert late
    assert min(late) >= 1.5
    below, all_ = (
        float(
            re.findall(
                rf'^outlive_event_loop_lag_seconds_bucket{{le="{bound}"}} (.*)$', metrics, re.MULTILINE
            )[0]
        )
        for bound in ("1.0", "\\+Inf")
    )
    assert all_ - below >= 3
    result(
        f"{sentence(account, 'notify_partner')}; timed out after {min(late):.2f} to {max(late):.2f} s instead of 1.5 s, none "
        f"stuck; the lag histogram has {all_ - below:.0f} above a second"
    )


@pytest.mark.parametrize(
    "loop",
    [
        pytest.param(
            "uvloop",
            marks=pytest.mark.reliability("fault", "the event loop is uvloop, and the partner fails"),
        ),
        pytest.param(
            "asyncio",
            marks=pytest.mark.reliability("fault", "the event loop is asyncio's own, and the partner fails"),
        ),
    ],
)
async def test_each_event_loop(loop: str, load: Load, result: Callable[[str], None]) -> None:
    running = ""

    @asynccontextmanager
    async def faulty(demo: Demo) -> AsyncIterator[None]:
        nonlocal running
        running = (await ask(demo, "GET", "/trouble"))["loop"]
        async with partner_goes_wrong(demo, ERRORS):
            yield

    account = await load.bear(faulty, troubled=True, EVENT_LOOP=loop)
    assert running.startswith(loop)
    result(sentence(account))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.reliability("fault", "every task starts eagerly, and the partner fails")
async def test_eager_tasks(load: Load, result: Callable[[str], None]) -> None:
    eager = False

    @asynccontextmanager
    async def faulty(demo: Demo) -> AsyncIterator[None]:
        nonlocal eager
        await ask(demo, "POST", "/trouble/eager")
        eager = (await ask(demo, "GET", "/trouble"))["eager"]
        async with partner_goes_wrong(demo, ERRORS):
            yield

    account = await load.bear(faulty, troubled=True, EVENT_LOOP="asyncio")
    assert eager
    result(sentence(account))
