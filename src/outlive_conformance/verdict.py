"""What the evidence of a trial says of each cell, and where it contradicts a promise."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from outlive_conformance.clients import Client
from outlive_conformance.matrix import Cell, End, Group, Handler, impossible
from outlive_conformance.servers import HYPERCORN, TEST_CLIENT
from outlive_conformance.trial import Evidence, left_tasks


class Fate(StrEnum):
    """What became of the work of one cell."""

    DONE = "done"
    LOST = "lost"
    """It was begun, and not done."""
    NEVER_BEGUN = "never begun"
    """The handler wasn't told, or didn't get so far."""
    DOUBLED = "doubled"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was seen of one cell.

    Parameters:
        told_after: seconds from the client's leaving to the disconnect as the app saw it, where both are known.
        problems: sentences about what contradicts a promise; the other ways promise nothing.
    """

    cell: Cell
    fate: Fate
    told_after: float | None
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was seen of one group; `problems` are those of the process as a whole."""

    group: Group
    findings: tuple[Finding, ...]
    problems: tuple[str, ...]
    runs: int

    @property
    def all_problems(self) -> list[str]:
        """Every sentence, with where it belongs."""
        return [
            *(f"{self.group.server}, {', '.join(self.group.ends)}: {problem}" for problem in self.problems),
            *(
                f"{finding.cell.server}, {finding.cell.end}, {finding.cell.handler}: {problem}"
                for finding in self.findings
                for problem in finding.problems
            ),
        ]


def judge(group: Group, evidence: Evidence) -> Verdict:
    """Judge one trial."""
    held = group.is_outlives and not any(impossible(group.server, end) for end in group.ends)
    return Verdict(
        group,
        tuple(_find(one, evidence, held=held) for one in evidence.clients),
        tuple(_process_problems(evidence)) if held else (),
        sum(state["submitted"] for state in evidence.after),
    )


def _find(one: Client, evidence: Evidence, *, held: bool) -> Finding:
    saved, noticed = evidence.saved[one.key], evidence.noticed[one.key]
    if max(saved, noticed) > 1:
        fate = Fate.DOUBLED
    elif saved:
        fate = Fate.DONE
    else:
        fate = Fate.LOST if one.key in evidence.begun else Fate.NEVER_BEGUN
    told = [at - one.left_at for _, at in _disconnects(one.cell, evidence) if one.left_at is not None]
    problems = tuple(_cell_problems(one.cell, fate, evidence)) if held else ()
    return Finding(one.cell, fate, told[0] if told else None, problems)


def _disconnects(cell: Cell, evidence: Evidence) -> list[tuple[str, float]]:
    prefix = f"/{cell.task}/"
    return [
        (disconnect["cause"], disconnect["at"])
        for state in evidence.after
        for disconnect in state["disconnects"]
        if disconnect["route"].startswith(prefix)
    ]


def _cell_problems(cell: Cell, fate: Fate, evidence: Evidence) -> Iterator[str]:
    if fate is not Fate.DONE:
        yield f"the work is {fate}"
    outcomes = [state["runs"][cell.task] for state in evidence.after if cell.task in state["runs"]]
    if outcomes != [{"completed": 1}]:
        yield f"the counters say {outcomes}"
    ended = [span for state in evidence.after for span in state["spans"]["ended"]]
    spans = [span for span in ended if span["name"] == cell.task]
    if [span["outcome"] for span in spans] != ["completed"]:
        yield f"its spans are {spans}"
    causes = [cause for cause, _ in _disconnects(cell, evidence)]
    if (
        len(causes) > 1
        or not set(causes) <= _possible_causes(cell)
        or (not causes and _is_a_disconnect(cell))
    ):
        yield f"the causes of its disconnects are {causes}"
    root = f"disconnect /{cell.task}/{{key}}"
    roots = [span for span in ended if span["name"] == root]
    children = [span for span in spans if span["parent"] == root]
    # What is submitted before the middleware knows of the end is the connection's own.
    if len(roots) != len(children) or (_is_told_before_clean_up(cell) and len(roots) != 1):
        yield f"its disconnect flow has the spans {roots} and {children}"


def _possible_causes(cell: Cell) -> set[str]:
    if cell.end.is_stop:
        return {"server_shutdown", "client_lost", "client_closed"}
    match cell.end:
        case End.CLOSE_FRAME:
            # It tells 1006 for a close frame too.
            lost = cell.server is HYPERCORN
            # The test client cancels a handler that isn't receiving.
            return {"client_lost" if lost else "client_closed"} | (
                {"server_shutdown"} if cell.server is TEST_CLIENT else set()
            )
        case End.ABORT | End.HALF_OPEN | End.STOPS_READING:
            return {"client_lost"}
        case End.RAISES:
            return {"error"}
        case End.NATIVE_CANCEL:
            return {"server_shutdown"}
    return set()


def _is_a_disconnect(cell: Cell) -> bool:
    """Whether the client's leaving is what ends it: a stop may come first, and a plain response be complete."""
    return cell.end in (End.CLOSE_FRAME, End.ABORT, End.HALF_OPEN, End.STOPS_READING)


def _is_told_before_clean_up(cell: Cell) -> bool:
    return _is_a_disconnect(cell) and cell.server is not TEST_CLIENT and cell.handler is not Handler.REQUEST


def _process_problems(evidence: Evidence) -> Iterator[str]:
    if not evidence.stopped:
        yield "the server didn't stop when it was asked to"
    if not evidence.after:
        yield "no process told its last state"
    for state in evidence.after:
        left = {name: state[name] for name in ("running", "pending", "stuck", "connections") if state[name]}
        if left:
            yield f"left behind: {left}"
        if state["submitted"] != state["outcomes"]:
            yield f"{state['submitted']} runs submitted, {state['outcomes']} outcomes"
        if state["spans"]["open"]:
            yield f"open spans: {state['spans']['open']}"
    if evidence.at_rest is not None and (tasks := left_tasks(evidence.at_rest, evidence)):
        yield f"asyncio tasks left behind: {tasks}"
