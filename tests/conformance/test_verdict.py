"""The matrix's judge: whatever breaks a promise in one cell's evidence is told, in words that say where."""

import asyncio
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from outlive_conformance.clients import client
from outlive_conformance.matrix import Cell, End, Group, Handler, Way
from outlive_conformance.report import Report
from outlive_conformance.servers import DAPHNE, UVICORN
from outlive_conformance.trial import Evidence
from outlive_conformance.verdict import Fate, judge

CELL = Cell(UVICORN, End.CLOSE_FRAME, Handler.RECEIVES, Way.OUTLIVE)
GROUP = Group(UVICORN, (End.CLOSE_FRAME,), (Way.OUTLIVE,))
KEY = "a-key"
ROUTE = f"/{CELL.task}/{{key}}"


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    """What a cell leaves that went well."""

    async def someone() -> Any:
        one = client(CELL, KEY, 1, tmp_path)
        one.left_at = 100.0
        return one

    state = {
        "submitted": 1,
        "outcomes": 1,
        "running": 0,
        "pending": 0,
        "stuck": 0,
        "connections": 0,
        "runs": {CELL.task: {"completed": 1}},
        "disconnects": [{"route": ROUTE, "cause": "client_closed", "at": 100.25}],
        "spans": {
            "open": [],
            "ended": [
                {"name": CELL.task, "parent": f"disconnect {ROUTE}", "outcome": "completed"},
                {"name": f"disconnect {ROUTE}", "parent": None, "outcome": None},
            ],
        },
        "tasks": ["Server.serve"],
    }
    return Evidence(
        clients=[asyncio.run(someone())],
        saved=Counter([KEY]),
        noticed=Counter([KEY]),
        begun={KEY},
        before={"tasks": ["Server.serve"]},
        at_rest=deepcopy(state),
        after=[state],
    )


def test_what_went_well_has_no_problems(evidence: Evidence) -> None:
    verdict = judge(GROUP, evidence)
    assert verdict.all_problems == []
    assert [(finding.fate, finding.told_after) for finding in verdict.findings] == [(Fate.DONE, 0.25)]
    assert verdict.runs == 1


def lose(evidence: Evidence) -> None:
    evidence.saved.clear()


def never_begin(evidence: Evidence) -> None:
    evidence.saved.clear()
    evidence.begun.clear()


def double(evidence: Evidence) -> None:
    evidence.noticed[KEY] = 2


def count_nothing(evidence: Evidence) -> None:
    evidence.after[0]["runs"] = {}


def count_a_failure(evidence: Evidence) -> None:
    evidence.after[0]["runs"][CELL.task] = {"failed": 1}


def trace_nothing(evidence: Evidence) -> None:
    evidence.after[0]["spans"]["ended"].clear()


def trace_no_flow(evidence: Evidence) -> None:
    evidence.after[0]["spans"]["ended"][0]["parent"] = None


def miss_the_disconnect(evidence: Evidence) -> None:
    evidence.after[0]["disconnects"].clear()


def tell_another_cause(evidence: Evidence) -> None:
    evidence.after[0]["disconnects"][0]["cause"] = "error"


def leave_a_span(evidence: Evidence) -> None:
    evidence.after[0]["spans"]["open"] = ["save"]


def leave_a_connection(evidence: Evidence) -> None:
    evidence.after[0]["connections"] = 1


def leave_a_task(evidence: Evidence) -> None:
    assert evidence.at_rest is not None
    evidence.at_rest["tasks"].append("Channel._keep")


def lose_count(evidence: Evidence) -> None:
    evidence.after[0]["submitted"] = 2


def tell_nothing(evidence: Evidence) -> None:
    evidence.after.clear()


def hang(evidence: Evidence) -> None:
    evidence.stopped = False


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lose, "the work is lost"),
        (never_begin, "the work is never begun"),
        (double, "the work is doubled"),
        (count_nothing, "the counters say []"),
        (count_a_failure, "the counters say [{'failed': 1}]"),
        (trace_nothing, "its spans are []"),
        (trace_no_flow, "its disconnect flow has the spans"),
        (miss_the_disconnect, "the causes of its disconnects are []"),
        (tell_another_cause, "the causes of its disconnects are ['error']"),
        (leave_a_span, "open spans: ['save']"),
        (leave_a_connection, "left behind: {'connections': 1}"),
        (leave_a_task, "asyncio tasks left behind: ['Channel._keep']"),
        (lose_count, "2 runs submitted, 1 outcomes"),
        (tell_nothing, "no process told its last state"),
        (hang, "the server didn't stop when it was asked to"),
    ],
)
def test_what_breaks_a_promise_is_told(
    evidence: Evidence, break_it: Callable[[Evidence], None], words: str
) -> None:
    break_it(evidence)
    problems = judge(GROUP, evidence).all_problems
    assert any(words in problem for problem in problems), problems
    assert all(problem.startswith(f"{UVICORN}, {End.CLOSE_FRAME}") for problem in problems)


def test_where_nothing_is_promised_nothing_is_a_problem(evidence: Evidence, tmp_path: Path) -> None:
    lose(evidence)
    tell_nothing(evidence)
    for cell in (
        Cell(UVICORN, End.CLOSE_FRAME, Handler.RECEIVES, Way.PLAIN_AWAIT),
        Cell(DAPHNE, End.STOP_AFTER, Handler.RECEIVES, Way.OUTLIVE),
    ):
        evidence.clients[0].cell = cell
        verdict = judge(Group(cell.server, (cell.end,), (cell.way,)), evidence)
        assert verdict.all_problems == []
        assert verdict.findings[0].fate is Fate.LOST


def test_the_report_tells_what_was_lost_and_where(evidence: Evidence) -> None:
    lose(evidence)
    report = Report([judge(GROUP, evidence)])
    numbers = report.numbers()
    assert (numbers["cells"], numbers["lost"]["outlive"], numbers["lost"]["plain-await"]) == (1, 1, 0)
    assert "close frame, websocket that receives: the work is lost" in "\n".join(report.problems)
    page = report.markdown()
    assert "| close frame | · | · | · | **lost:** receives | · |" in page
    assert f"## {UVICORN}" in page
