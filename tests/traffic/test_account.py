"""The account: a perfect record balances, and nothing missing, doubled or changed escapes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from outlive_service.account import (
    Account,
    AnswerRow,
    Counters,
    Database,
    ExportRow,
    SessionRow,
    balance,
    quantile,
    read_counters,
)
from outlive_service.sights import CompletionVisit, ExportVisit, RoomVisit, Sight

TASKS = (
    "save_transcript",
    "notify_partner",
    "announce_departure",
    "save_answer",
    "bill_tokens",
    "release_export",
)


@dataclass
class World:
    """What happened, in a form that a test may spoil."""

    sights: list[Sight] = field(default_factory=list)
    sessions: list[SessionRow] = field(default_factory=list)
    answers: list[AnswerRow] = field(default_factory=list)
    exports: list[ExportRow] = field(default_factory=list)
    notices: list[dict[str, Any]] = field(default_factory=list)
    charges: dict[str, dict[str, int]] = field(default_factory=dict)
    charge_attempts: list[dict[str, Any]] = field(default_factory=list)
    generations: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, int]] = field(default_factory=lambda: {task: {} for task in TASKS})

    def run(self, task: str, outcome: str = "completed") -> None:
        self.runs[task][outcome] = self.runs[task].get(outcome, 0) + 1

    def charge(self, key: str, tokens: int) -> None:
        self.charges[key] = {"tokens": tokens, "attempts": 1}
        self.charge_attempts.append({"key": key, "fault": None})

    def counters(self) -> Counters:
        return Counters(
            runs=self.runs,
            submitted={task: sum(by_outcome.values()) for task, by_outcome in self.runs.items()},
        )

    def records(self) -> Mapping[str, Any]:
        return {
            "notices": self.notices,
            "charges": self.charges,
            "charge_attempts": self.charge_attempts,
            "generations": self.generations,
        }

    def account(self) -> Account:
        database = Database(self.sessions, self.answers, self.exports)
        return balance(self.sights, database, self.records(), self.counters())


def add_room(draw: st.DrawFn, world: World, session: str, *, seen: bool) -> None:
    sent = draw(st.integers(0, 9))
    acknowledged = draw(st.integers(0, sent))
    lines = draw(st.integers(acknowledged, sent))
    if seen:
        world.sights.append(RoomVisit(session, "lobby", "ann", sent, acknowledged, "closed"))
    world.sessions.append(SessionRow(session, "lobby", "ann", lines))
    world.run("save_transcript")
    world.run("announce_departure", draw(st.sampled_from(["completed", "cancelled"])))
    fault = draw(st.sampled_from([None, None, "error", "hang"]))
    world.notices.append({"key": session, "fault": fault})
    world.run("notify_partner", {None: "completed", "error": "failed", "hang": "timed_out"}[fault])


def add_completion(draw: st.DrawFn, world: World, key: str, *, seen: bool) -> None:
    produced = draw(st.integers(0, 9))
    saved = draw(st.integers(0, produced))
    received = draw(st.integers(0, saved))
    if seen:
        world.sights.append(CompletionVisit(key, received, done=received == produced))
    world.generations[key] = {"tokens": produced, "finished": saved == produced}
    world.run("save_answer")
    fault = draw(st.sampled_from([None, None, "error", "hang"]))
    if fault is None:
        world.answers.append(AnswerRow(key, saved, saved == produced, "charged"))
        world.charge(key, saved)
        world.run("bill_tokens")
    else:
        world.answers.append(AnswerRow(key, saved, saved == produced, "due"))
        world.charge_attempts.append({"key": key, "fault": fault})
        world.run("bill_tokens", {"error": "failed", "hang": "timed_out"}[fault])


@st.composite
def perfect(draw: st.DrawFn) -> World:
    """A record in which everything that should have happened did, faults of the partner's included."""
    world = World()
    for n in range(draw(st.integers(0, 5))):
        add_room(draw, world, f"session-{n}", seen=True)
    for n in range(draw(st.integers(0, 5))):
        add_completion(draw, world, f"answer-{n}", seen=True)
    for n in range(draw(st.integers(0, 5))):
        world.sights.append(ExportVisit(f"export-{n}", draw(st.integers(0, 99)), draw(st.booleans())))
        world.exports.append(ExportRow(f"export-{n}", released=True))
        world.run("release_export")
    # Some whose id never reached a client.
    for n in range(draw(st.integers(0, 2))):
        add_room(draw, world, f"unseen-session-{n}", seen=False)
        add_completion(draw, world, f"unseen-answer-{n}", seen=False)
        world.exports.append(ExportRow(f"unseen-export-{n}", released=draw(st.booleans())))
    return world


def busy() -> World:
    """A small perfect record with one of everything."""
    world = World()
    world.sights += [
        RoomVisit("s", "lobby", "ann", 3, 2, "aborted"),
        CompletionVisit("c", 4, done=False),
        ExportVisit("e", 7, done=False),
    ]
    world.sessions.append(SessionRow("s", "lobby", "ann", 3))
    world.notices.append({"key": "s", "fault": None})
    world.generations["c"] = {"tokens": 6, "finished": False}
    world.answers.append(AnswerRow("c", 5, finished=False, bill="charged"))
    world.charge("c", 5)
    world.exports.append(ExportRow("e", released=True))
    for task in TASKS:
        world.run(task)
    return world


@given(perfect())
def test_a_perfect_record_balances(world: World) -> None:
    account = world.account()
    assert account.errors == ()
    assert account.balanced
    assert (account.lost, account.doubled) == (0, 0)
    assert account.submitted == sum(account.outcomes.values())
    assert set(account.outcomes) == {"completed", "timed_out", "cancelled", "failed", "rejected"}


Pick = Callable[[list[Any]], Any]
Drop = Callable[[World, Pick], bool]


def seen(world: World, kind: type[Sight]) -> list[Any]:
    return [sight for sight in world.sights if isinstance(sight, kind)]


def without(rows: list[Any], key: Callable[[Any], str], gone: str) -> list[Any]:
    return [row for row in rows if key(row) != gone]


def drop_transcript(world: World, pick: Pick) -> bool:
    if not (visits := seen(world, RoomVisit)):
        return False
    gone = pick(visits).session
    world.sessions = without(world.sessions, lambda row: row.session, gone)
    return True


def drop_notice(world: World, pick: Pick) -> bool:
    # One with a fault has an outcome that tells it; see the test of its own below.
    keys = {visit.session for visit in seen(world, RoomVisit)}
    accepted = [n["key"] for n in world.notices if n["fault"] is None and n["key"] in keys]
    if not accepted:
        return False
    gone = pick(accepted)
    world.notices = without(world.notices, lambda notice: notice["key"], gone)
    return True


def drop_answer(world: World, pick: Pick) -> bool:
    if not (visits := seen(world, CompletionVisit)):
        return False
    gone = pick(visits).id
    world.answers = without(world.answers, lambda row: row.id, gone)
    return True


def drop_charge(world: World, pick: Pick) -> bool:
    if not (keys := [key for key, charge in world.charges.items() if charge["tokens"]]):
        return False
    del world.charges[pick(keys)]
    return True


def drop_charge_and_its_mark(world: World, pick: Pick) -> bool:
    """A service that never billed, and says so in its row, but had no run that was told."""
    if not (keys := [key for key, charge in world.charges.items() if charge["tokens"]]):
        return False
    gone = pick(keys)
    del world.charges[gone]
    world.charge_attempts = without(world.charge_attempts, lambda attempt: attempt["key"], gone)
    world.answers = [replace(row, bill="due") if row.id == gone else row for row in world.answers]
    return True


def drop_release(world: World, pick: Pick) -> bool:
    if not (visits := seen(world, ExportVisit)):
        return False
    gone = pick(visits).id
    world.exports = [replace(row, released=False) if row.id == gone else row for row in world.exports]
    return True


def drop_lease(world: World, pick: Pick) -> bool:
    if not (visits := seen(world, ExportVisit)):
        return False
    gone = pick(visits).id
    world.exports = without(world.exports, lambda row: row.id, gone)
    return True


DROPS: dict[Drop, str] = {
    drop_transcript: "save_transcript",
    drop_notice: "notify_partner",
    drop_answer: "save_answer",
    drop_charge: "",
    drop_charge_and_its_mark: "bill_tokens",
    drop_release: "release_export",
    drop_lease: "release_export",
}


def named(drop: Drop) -> str:
    return drop.__name__


def drawn(data: st.DataObject) -> Pick:
    return lambda choices: data.draw(st.sampled_from(choices))


@pytest.mark.parametrize("drop", DROPS, ids=named)
@given(world=perfect(), data=st.data())
def test_any_one_missing_record_is_lost(drop: Drop, world: World, data: st.DataObject) -> None:
    assume(drop(world, drawn(data)))
    account = world.account()
    assert account.lost == 1
    assert not account.balanced


@pytest.mark.parametrize("drop", DROPS, ids=named)
@given(
    world=perfect(), data=st.data(), outcome=st.sampled_from(["timed_out", "cancelled", "failed", "rejected"])
)
def test_a_missing_record_that_was_told_is_not_lost(
    drop: Drop, world: World, data: st.DataObject, outcome: str
) -> None:
    assume(drop(world, drawn(data)))
    if task := DROPS[drop]:
        world.runs[task]["completed"] = world.runs[task].get("completed", 0) - 1
        world.run(task, outcome)
        assert world.account().lost == 0
    else:
        # A row that claims a charge which never happened is not excused by any outcome.
        world.run("bill_tokens", outcome)
        assert world.account().lost == 1


def test_told_runs_excuse_only_as_many_as_there_are() -> None:
    world = World()
    for n in range(5):
        world.sights.append(RoomVisit(f"s{n}", "lobby", "ann", 0, 0, "closed"))
        world.notices.append({"key": f"s{n}", "fault": None})
        world.run("notify_partner")
    for outcome in ("timed_out", "rejected"):
        world.run("save_transcript", outcome)
    account = world.account()
    assert account.lost == 3
    (error,) = account.errors
    assert error == (
        "3 lost, missing transcripts, of which 2 can be runs of save_transcript that were told: "
        "s0, s1, s2 and 2 more"
    )


def test_a_fault_of_the_partner_excuses_no_other_notice() -> None:
    world = busy()
    world.sights.append(RoomVisit("t", "lobby", "bob", 0, 0, "closed"))
    world.sessions.append(SessionRow("t", "lobby", "bob", 0))
    world.notices[0]["fault"] = "error"
    # The run of s failed on the partner's fault; t's notice is missing and nothing tells it.
    world.runs["notify_partner"] = {"failed": 1, "completed": 1}
    assert world.account().lost == 1
    world.runs["notify_partner"] = {"failed": 1, "timed_out": 1}
    assert world.account().balanced


def test_a_fault_of_the_partner_excuses_no_other_bill() -> None:
    world = busy()
    world.charges.clear()
    world.charge_attempts[:] = [{"key": "c", "fault": "hang"}]
    world.answers[:] = [
        AnswerRow("c", 5, finished=False, bill="due"),
        AnswerRow("d", 2, finished=True, bill="due"),
    ]
    world.generations["d"] = {"tokens": 2, "finished": True}
    world.runs["bill_tokens"] = {"timed_out": 1, "completed": 1}
    assert world.account().lost == 1
    world.runs["bill_tokens"] = {"timed_out": 1, "rejected": 1}
    assert world.account().balanced


def test_faults_that_no_run_was_told_of_make_nothing_worse() -> None:
    """A service that swallows the partner's errors: one notice is missing, and one is lost, no more."""
    world = World(sights=[RoomVisit("s", "lobby", "ann", 0, 0, "closed")])
    world.sessions.append(SessionRow("s", "lobby", "ann", 0))
    world.notices += [{"key": f"other-{n}", "fault": "error"} for n in range(3)]
    assert world.account().lost == 1


def test_a_charge_that_arrived_though_its_run_was_told_balances() -> None:
    """The partner took the charge, but its answer came too late: the bill stays due."""
    world = busy()
    world.answers[:] = [AnswerRow("c", 5, finished=False, bill="due")]
    world.runs["bill_tokens"] = {"timed_out": 1}
    assert world.account().balanced


def test_a_charge_repeated_after_a_fault_is_not_doubled() -> None:
    world = busy()
    world.charge_attempts.insert(0, {"key": "c", "fault": "error"})
    world.charges["c"]["attempts"] = 2
    assert world.account().balanced


def test_a_charge_repeated_after_a_fault_uses_up_no_told_run() -> None:
    world = busy()
    world.charge_attempts.insert(0, {"key": "c", "fault": "error"})
    world.answers.append(AnswerRow("d", 2, finished=True, bill="due"))
    world.generations["d"] = {"tokens": 2, "finished": True}
    world.runs["bill_tokens"] = {"completed": 1, "rejected": 1}
    assert world.account().balanced


def test_no_tokens_need_no_charge() -> None:
    world = World(
        sights=[CompletionVisit("c", 0, done=False)],
        answers=[AnswerRow("c", 0, finished=False, bill="due")],
    )
    assert world.account().balanced


@pytest.mark.parametrize("kind", ["sights", "sessions", "notices", "answers", "exports", "charge_attempts"])
@given(world=perfect(), data=st.data())
def test_any_doubled_record_is_found(kind: str, world: World, data: st.DataObject) -> None:
    records: list[Any] = getattr(world, kind)
    candidates = records
    if kind == "charge_attempts":
        candidates = [attempt for attempt in records if attempt["fault"] is None]
    assume(candidates)
    records.append(data.draw(st.sampled_from(candidates)))
    account = world.account()
    assert account.doubled == 1
    assert not account.balanced


@given(world=perfect(), data=st.data())
def test_a_charge_of_other_tokens_is_found(world: World, data: st.DataObject) -> None:
    assume(world.charges)
    key = data.draw(st.sampled_from(sorted(world.charges)))
    charge = world.charges[key]
    tokens = data.draw(st.integers(0, 20).filter(lambda tokens: tokens != charge["tokens"]))
    world = replace(world, charges=world.charges | {key: charge | {"tokens": tokens}})
    assert world.account().errors == (
        f"charges of other tokens than the answer's: {key} ({tokens} charged, {charge['tokens']} saved)",
    )


Spoil = Callable[[World], Any]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda world: world.charge("nobody", 1),
            "charges without an answer: nobody",
        ),
        (
            lambda world: world.sessions.__setitem__(0, SessionRow("s", "lobby", "ann", 1)),
            "transcripts whose lines are fewer than acknowledged or more than sent: s (1 saved, 2 acknowledged, 3 sent)",
        ),
        (
            lambda world: world.sessions.__setitem__(0, SessionRow("s", "lobby", "ann", 4)),
            "transcripts whose lines are fewer than acknowledged or more than sent: s (4 saved, 2 acknowledged, 3 sent)",
        ),
        (
            lambda world: world.sessions.__setitem__(0, SessionRow("s", "lobby", "eve", 3)),
            "transcripts of another room or user than their client's: s",
        ),
        (
            lambda world: world.sights.__setitem__(1, CompletionVisit("c", 6, done=False)),
            "answers saved with fewer tokens than their client received: c (5 saved, 6 received)",
        ),
        (
            lambda world: world.generations.__setitem__("c", {"tokens": 4, "finished": False}),
            "answers saved with more tokens than the upstream produced: c (5 saved, 4 produced)",
        ),
        (
            lambda world: world.generations.clear(),
            "answers saved with more tokens than the upstream produced: c (5 saved, 0 produced)",
        ),
        (
            lambda world: world.runs["save_answer"].__setitem__("vanished", 1),
            "save_answer has outcomes that do not exist: vanished",
        ),
    ],
)
def test_a_contradiction_is_told_in_one_sentence(spoil: Spoil, sentence: str) -> None:
    world = busy()
    assert world.account().balanced
    spoil(world)
    assert world.account().errors == (sentence,)
    assert not world.account().balanced


@given(perfect(), st.sampled_from(TASKS), st.sampled_from([-1, 1]))
def test_submitted_must_equal_the_outcomes(world: World, task: str, off: int) -> None:
    counters = world.counters()
    counters = replace(counters, submitted={**counters.submitted, task: counters.submitted[task] + off})
    account = balance(
        world.sights, Database(world.sessions, world.answers, world.exports), world.records(), counters
    )
    assert not account.balanced
    assert len(account.errors) == 1
    assert account.errors[0].startswith(f"{task}: ")


def test_many_errors_make_one_sentence() -> None:
    world = World(sights=[ExportVisit(str(n), 0, done=False) for n in range(10_000)])
    account = world.account()
    assert account.lost == 10_000
    assert account.errors == ("10000 lost, missing releases of exports: 0, 1, 2 and 9997 more",)


def test_as_json() -> None:
    world = busy()
    counters = replace(
        world.counters(), absorbed_cancellations=2, disconnects={"client_lost": 3}, tail_p50=0.1, tail_p99=0.9
    )
    account = balance(
        world.sights, Database(world.sessions, world.answers, world.exports), world.records(), counters
    )
    assert account.as_json() == {
        "submitted": 6,
        "outcomes": {"completed": 6, "timed_out": 0, "cancelled": 0, "failed": 0, "rejected": 0},
        "lost": 0,
        "doubled": 0,
        "absorbed_cancellations": 2,
        "disconnects": {"client_lost": 3},
        "tail_seconds": {"p50": 0.1, "p99": 0.9},
        "errors": [],
    }


@pytest.mark.parametrize(
    ("q", "buckets", "expected"),
    [
        (0.5, {}, None),
        (0.5, {math.inf: 3}, None),
        (0.5, {1: 0, math.inf: 0}, None),
        # Rank 5 of 10 lies in the first bucket, which begins at zero: 5/10 of the way to 2.
        (0.5, {2: 10, math.inf: 10}, 1.0),
        # Rank 5 is the first bucket's last observation.
        (0.5, {1: 5, 2: 10, math.inf: 10}, 1.0),
        # Rank 9 lies 4/5 into the bucket from 1 to 2.
        (0.9, {1: 5, 2: 10, math.inf: 10}, 1.8),
        # Empty buckets are passed over.
        (0.75, {1: 2, 2: 2, 4: 4, math.inf: 4}, 3.0),
        # A rank that a bucket just reaches lies in it, though the next one is empty.
        (0.5, {1: 5, 2: 5, 4: 10, math.inf: 10}, 1.0),
        # What is over the last bound is told as the last bound.
        (0.99, {1: 5, 2: 6, math.inf: 10}, 2.0),
        (1.0, {1: 5, 2: 10, math.inf: 10}, 2.0),
    ],
)
def test_quantile(q: float, buckets: dict[float, float], expected: float | None) -> None:
    assert quantile(q, buckets) == (None if expected is None else pytest.approx(expected))


def registry() -> CollectorRegistry:
    """Metrics with the names and labels of the library's."""
    registry = CollectorRegistry()
    runs = Counter("outlive_runs", ".", ["task", "outcome"], registry=registry)
    runs.labels("save_answer", "completed").inc(3)
    runs.labels("save_answer", "failed").inc(2)
    runs.labels("bill_tokens", "completed").inc(0)
    Gauge("outlive_runs_running", ".", ["task"], registry=registry).labels("bill_tokens").set(0)
    Gauge("outlive_runs_pending", ".", ["task"], registry=registry).labels("bill_tokens").set(0)
    stuck = Gauge("outlive_runs_stuck", ".", ["task"], registry=registry)
    stuck.labels("save_answer").set(1)
    absorbed = Counter("outlive_absorbed_cancellations", ".", ["task"], registry=registry)
    absorbed.labels("save_answer").inc(4)
    absorbed.labels("bill_tokens").inc(5)
    disconnects = Counter("outlive_disconnects", ".", ["route", "transport", "cause"], registry=registry)
    disconnects.labels("/rooms/{room}", "websocket", "client_lost").inc(6)
    disconnects.labels("/completions", "sse", "client_lost").inc(1)
    disconnects.labels("/completions", "sse", "server_shutdown").inc(2)
    tail = Histogram(
        "outlive_disconnect_tail_seconds", ".", ["route", "transport"], buckets=(1, 2, 4), registry=registry
    )
    for route, seconds in (
        ("/rooms/{room}", 0.5),
        ("/rooms/{room}", 1.5),
        ("/completions", 1.5),
        ("/b", 3.0),
    ):
        tail.labels(route, "websocket").observe(seconds)
    return registry


def test_counters_are_read_from_the_classic_text_format() -> None:
    counters = read_counters(generate_latest(registry()).decode())
    assert counters.runs == {"save_answer": {"completed": 3, "failed": 2}, "bill_tokens": {"completed": 0}}
    assert counters.submitted == {"save_answer": 5, "bill_tokens": 0}
    assert counters.told("save_answer") == 2
    assert counters.told("unknown") == 0
    assert counters.stuck == 1
    assert counters.absorbed_cancellations == 9
    assert counters.disconnects == {"client_lost": 7, "server_shutdown": 2}
    # Over all routes: 1, 3 and 4 of 4 within 1, 2 and 4 seconds.
    assert counters.tail_p50 == pytest.approx(1.5)
    assert counters.tail_p99 == pytest.approx(2 + 2 * (3.96 - 3))


def test_a_run_that_still_runs_has_no_outcome() -> None:
    text = (
        generate_latest(registry())
        .decode()
        .replace(
            'outlive_runs_running{task="bill_tokens"} 0.0', 'outlive_runs_running{task="bill_tokens"} 1.0'
        )
    )
    account = balance([], Database([], [], []), World().records(), read_counters(text))
    assert account.errors == ("bill_tokens: 1 runs submitted, but 0 outcomes",)


def test_no_metrics_is_no_counters() -> None:
    counters = read_counters("")
    assert counters == Counters(runs={}, submitted={})
    assert (counters.tail_p50, counters.tail_p99) == (None, None)
