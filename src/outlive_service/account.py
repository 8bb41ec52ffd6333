"""The account at the end of a demo: what the clients saw against the database's and the partner's records.

Pure functions over plain data. What a service says about itself, its counters, is used for two things only:
that every run it took has an outcome, and that a missing record was told by an outcome other than completed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prometheus_client.parser import text_string_to_metric_families

from outlive_service.sights import CompletionVisit, ExportVisit, RoomVisit, Sight

__all__ = [
    "Account",
    "AnswerRow",
    "Counters",
    "Database",
    "ExportRow",
    "SessionRow",
    "balance",
    "read_counters",
]

OUTCOMES = ("completed", "timed_out", "cancelled", "failed", "rejected")

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One saved transcript, with its number of lines."""

    session: str
    room: str
    user: str
    lines: int


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One saved answer."""

    id: str
    tokens: int
    finished: bool
    bill: Literal["due", "charged"]


@dataclass(frozen=True, slots=True)
class ExportRow:
    """One lease of a report."""

    id: str
    released: bool


@dataclass(frozen=True, slots=True)
class Database:
    """The rows that the service's database holds."""

    sessions: Sequence[SessionRow]
    answers: Sequence[AnswerRow]
    exports: Sequence[ExportRow]


@dataclass(frozen=True, slots=True)
class Counters:
    """What the service counted: `runs` by task and outcome, `submitted` by task, the tail in seconds."""

    runs: Mapping[str, Mapping[str, int]]
    submitted: Mapping[str, int]
    stuck: int = 0
    absorbed_cancellations: int = 0
    disconnects: Mapping[str, int] = field(default_factory=dict)
    tail_p50: float | None = None
    tail_p99: float | None = None

    @property
    def open(self) -> int:
        """How many runs have no outcome yet."""
        return sum(self.submitted.values()) - sum(sum(ended.values()) for ended in self.runs.values())

    def told(self, task: str) -> int:
        """How many runs of this task ended with an outcome other than completed."""
        return sum(count for outcome, count in self.runs.get(task, {}).items() if outcome != "completed")


@dataclass(frozen=True, slots=True)
class Account:
    """The result; `errors` are sentences for a person, and say everything that `lost` and `doubled` count."""

    submitted: int
    outcomes: Mapping[str, int]
    lost: int
    doubled: int
    errors: tuple[str, ...]
    counters: Counters

    @property
    def balanced(self) -> bool:
        """Whether nothing was lost, doubled or contradictory."""
        return not (self.errors or self.lost or self.doubled)

    def as_json(self) -> dict[str, Any]:
        """Return what `outlive demo --json` prints."""
        return {
            "submitted": self.submitted,
            "outcomes": dict(self.outcomes),
            "lost": self.lost,
            "doubled": self.doubled,
            "absorbed_cancellations": self.counters.absorbed_cancellations,
            "disconnects": dict(self.counters.disconnects),
            "tail_seconds": {"p50": self.counters.tail_p50, "p99": self.counters.tail_p99},
            "errors": list(self.errors),
        }


class _Findings:
    """What is wrong, one sentence for each kind of thing however often it happened."""

    def __init__(self) -> None:
        self.lost = 0
        self.doubled = 0
        self.sentences: list[str] = []

    def wrong(self, what: str, which: Sequence[str]) -> None:
        if which:
            more = f" and {len(which) - _EXAMPLES} more" if len(which) > _EXAMPLES else ""
            self.sentences.append(f"{what}: {', '.join(which[:_EXAMPLES])}{more}")

    def repeated(self, what: str, keys: Iterable[str]) -> None:
        extra = {key: times - 1 for key, times in Counter(keys).items() if times > 1}
        self.doubled += sum(extra.values())
        self.wrong(f"doubled {what}", [f"{key} ({times + 1} times)" for key, times in extra.items()])

    def missing(self, what: str, keys: Sequence[str], task: str, told: int) -> None:
        """Take the keys for lost, but for as many as runs of the task were told not to have done it."""
        lost = max(0, len(keys) - max(0, told))
        if lost:
            self.lost += lost
            explained = len(keys) - lost
            but = f", of which {explained} can be runs of {task} that were told" if explained else ""
            self.wrong(f"{lost} lost, missing {what}{but}", keys)


def balance(
    sights: Iterable[Sight], database: Database, records: Mapping[str, Any], counters: Counters
) -> Account:
    """Compare what the clients saw with what the database and the partner hold.

    Parameters:
        sights: what the clients saw (`Traffic.sights`).
        database: the rows of the service's database after its end.
        records: the partner's own, as it answers `GET /records`.
        counters: the service's, after its end: nothing runs or waits any more.
    """
    findings = _Findings()
    sights = list(sights)
    _check_runs(findings, counters)
    _check_rooms(findings, [s for s in sights if isinstance(s, RoomVisit)], database, records, counters)
    completions = [s for s in sights if isinstance(s, CompletionVisit)]
    _check_answers(findings, completions, database, records, counters)
    _check_bills(findings, database, records, counters)
    _check_exports(findings, [s for s in sights if isinstance(s, ExportVisit)], database, counters)
    outcomes = Counter(dict.fromkeys(OUTCOMES, 0))
    for by_outcome in counters.runs.values():
        outcomes.update(by_outcome)
    return Account(
        submitted=sum(counters.submitted.values()),
        outcomes=dict(outcomes),
        lost=findings.lost,
        doubled=findings.doubled,
        errors=tuple(findings.sentences),
        counters=counters,
    )


def _check_runs(findings: _Findings, counters: Counters) -> None:
    for task in sorted(counters.submitted.keys() | counters.runs.keys()):
        submitted, by_outcome = counters.submitted.get(task, 0), counters.runs.get(task, {})
        if unknown := by_outcome.keys() - set(OUTCOMES):
            findings.wrong(f"{task} has outcomes that do not exist", sorted(unknown))
        if submitted != sum(by_outcome.values()):
            findings.sentences.append(
                f"{task}: {submitted} runs submitted, but {sum(by_outcome.values())} outcomes"
            )


def _check_rooms(
    findings: _Findings,
    visits: Sequence[RoomVisit],
    database: Database,
    records: Mapping[str, Any],
    counters: Counters,
) -> None:
    notices = [notice["key"] for notice in records["notices"]]
    findings.repeated("sessions, told to clients", (visit.session for visit in visits))
    findings.repeated("transcripts", (row.session for row in database.sessions))
    findings.repeated("notices", notices)

    rows = {row.session: row for row in database.sessions}
    findings.missing(
        "transcripts",
        [visit.session for visit in visits if visit.session not in rows],
        "save_transcript",
        counters.told("save_transcript"),
    )
    saved = [(visit, rows[visit.session]) for visit in visits if visit.session in rows]
    findings.wrong(
        "transcripts of another room or user than their client's",
        [row.session for visit, row in saved if (row.room, row.user) != (visit.room, visit.user)],
    )
    findings.wrong(
        "transcripts whose lines are fewer than acknowledged or more than sent",
        [
            f"{row.session} ({row.lines} saved, {visit.acknowledged} acknowledged, {visit.sent} sent)"
            for visit, row in saved
            if not visit.acknowledged <= row.lines <= visit.sent
        ],
    )

    arrived = set(notices)
    # A notice that the partner answered with a fault did arrive: it explains a run that was told, and none
    # missing.
    faults = sum(notice["fault"] is not None for notice in records["notices"])
    findings.missing(
        "notices",
        [visit.session for visit in visits if visit.session not in arrived],
        "notify_partner",
        counters.told("notify_partner") - faults,
    )


def _check_answers(
    findings: _Findings,
    visits: Sequence[CompletionVisit],
    database: Database,
    records: Mapping[str, Any],
    counters: Counters,
) -> None:
    findings.repeated("completions, told to clients", (visit.id for visit in visits))
    findings.repeated("answers", (row.id for row in database.answers))

    rows = {row.id: row for row in database.answers}
    findings.missing(
        "answers",
        [visit.id for visit in visits if visit.id not in rows],
        "save_answer",
        counters.told("save_answer"),
    )
    findings.wrong(
        "answers saved with fewer tokens than their client received",
        [
            f"{visit.id} ({rows[visit.id].tokens} saved, {visit.tokens_received} received)"
            for visit in visits
            if visit.id in rows and rows[visit.id].tokens < visit.tokens_received
        ],
    )
    produced = {key: generation["tokens"] for key, generation in records["generations"].items()}
    findings.wrong(
        "answers saved with more tokens than the upstream produced",
        [
            f"{row.id} ({row.tokens} saved, {produced.get(row.id, 0)} produced)"
            for row in database.answers
            if row.tokens > produced.get(row.id, 0)
        ],
    )


def _check_bills(
    findings: _Findings, database: Database, records: Mapping[str, Any], counters: Counters
) -> None:
    charges: Mapping[str, Any] = records["charges"]
    rows = {row.id: row for row in database.answers}
    findings.wrong("charges without an answer", [key for key in charges if key not in rows])
    findings.wrong(
        "charges of other tokens than the answer's",
        [
            f"{key} ({charge['tokens']} charged, {rows[key].tokens} saved)"
            for key, charge in charges.items()
            if key in rows and charge["tokens"] != rows[key].tokens
        ],
    )

    attempts = records["charge_attempts"]
    # The idempotency key keeps such a charge from being taken twice; a second one after a success is doubled
    # work.
    findings.repeated("charges", (attempt["key"] for attempt in attempts if attempt["fault"] is None))

    # An answer of no tokens needs no charge.
    unpaid = [row for row in rows.values() if row.tokens and row.id not in charges]
    # No outcome explains a row that claims a charge.
    findings.missing(
        "charges of answers that say they are charged",
        [row.id for row in unpaid if row.bill == "charged"],
        "bill_tokens",
        0,
    )
    # A bill that is still due is told by its row, but only a fault of the partner's or a run that was told
    # may leave one; otherwise a service that never bills would balance.
    faulted = {attempt["key"] for attempt in attempts if attempt["fault"] is not None}
    findings.missing(
        "charges of answers whose bill is due",
        [row.id for row in unpaid if row.bill == "due" and row.id not in faulted],
        "bill_tokens",
        counters.told("bill_tokens") - len(faulted - charges.keys()),
    )


def _check_exports(
    findings: _Findings, visits: Sequence[ExportVisit], database: Database, counters: Counters
) -> None:
    findings.repeated("exports, told to clients", (visit.id for visit in visits))
    findings.repeated("leases", (row.id for row in database.exports))
    released = {row.id for row in database.exports if row.released}
    findings.missing(
        "releases of exports",
        [visit.id for visit in visits if visit.id not in released],
        "release_export",
        counters.told("release_export"),
    )


def read_counters(text: str) -> Counters:
    """Read a service's counters from its metrics in the classic text format, written after its end.

    `submitted` is what the outcomes and the runs still running or pending at that moment add up to: where the
    service knows the number of its submissions by itself, put that in its place.
    """
    runs: dict[str, Counter[str]] = {}
    submitted: Counter[str] = Counter()
    disconnects: Counter[str] = Counter()
    tail: dict[float, float] = {}
    absorbed = stuck = 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels, value = sample.labels, sample.value
            match sample.name:
                case "outlive_runs_total":
                    runs.setdefault(labels["task"], Counter())[labels["outcome"]] += int(value)
                    submitted[labels["task"]] += int(value)
                case "outlive_runs_running" | "outlive_runs_pending":
                    submitted[labels["task"]] += int(value)
                case "outlive_runs_stuck":
                    stuck += int(value)
                case "outlive_absorbed_cancellations_total":
                    absorbed += int(value)
                case "outlive_disconnects_total":
                    disconnects[labels["cause"]] += int(value)
                case "outlive_disconnect_tail_seconds_bucket":
                    bound = float(labels["le"])
                    tail[bound] = tail.get(bound, 0) + value
    return Counters(
        runs=runs,
        submitted=submitted,
        stuck=stuck,
        absorbed_cancellations=absorbed,
        disconnects=disconnects,
        tail_p50=quantile(0.5, tail),
        tail_p99=quantile(0.99, tail),
    )


def quantile(q: float, buckets: Mapping[float, float]) -> float | None:
    """Estimate a quantile, 0 < q <= 1, as Prometheus' histogram_quantile does; None without observations.

    Parameters:
        q: the quantile.
        buckets: cumulative counts by upper bound, above zero, infinity included.
    """
    bounds = sorted(buckets)
    if len(bounds) < 2 or not buckets[bounds[-1]]:
        return None
    rank = q * buckets[bounds[-1]]
    lower, below = 0.0, 0.0
    for upper in bounds[:-1]:
        if buckets[upper] >= rank:
            return lower + (upper - lower) * (rank - below) / (buckets[upper] - below)
        lower, below = upper, buckets[upper]
    return lower
