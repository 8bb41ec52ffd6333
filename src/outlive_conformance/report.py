"""The matrix as a person reads it: in a terminal, as Markdown, and in numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich import box
from rich.table import Table

from outlive_conformance.matrix import End, Handler, Way, impossible
from outlive_conformance.servers import SERVERS, Server
from outlive_conformance.verdict import Fate, Finding, Verdict

PACKAGES = (
    "uvicorn",
    "websockets",
    "wsproto",
    "hypercorn",
    "granian",
    "daphne",
    "starlette",
    "fastapi",
    "anyio",
)


class Report:
    """What the verdicts add up to."""

    def __init__(self, verdicts: Iterable[Verdict]) -> None:
        self._verdicts = list(verdicts)
        self._findings = [finding for verdict in self._verdicts for finding in verdict.findings]

    @property
    def problems(self) -> list[str]:
        """What contradicts a promise of Outlive's."""
        return [problem for verdict in self._verdicts for problem in verdict.all_problems]

    def numbers(self) -> dict[str, Any]:
        """The matrix in numbers; `lost` counts what was never begun too."""
        possible = [f for f in self._findings if not impossible(f.cell.server, f.cell.end)]
        return {
            "cells": len(self._findings),
            "runs_submitted": sum(verdict.runs for verdict in self._verdicts),
            "lost": {str(way): sum(undone(f) for f in self._of(way)) for way in Way},
            "lost_where_promised": {
                str(way): sum(undone(f) for f in possible if f.cell.way is way) for way in Way
            },
            "cells_by_way": {str(way): len(self._of(way)) for way in Way},
            "doubled": sum(f.fate is Fate.DOUBLED for f in self._findings),
            "problems": self.problems,
        }

    def summary(self) -> str:
        """The numbers in words."""
        numbers = self.numbers()
        lost = ", ".join(f"{way} {numbers['lost'][way]} of {numbers['cells_by_way'][way]}" for way in Way)
        there = {(f.cell.server, f.cell.end) for f in self._findings}
        reasons = sorted({reason for where in there if (reason := impossible(*where))})
        notes = "".join(f"\n* {reason}" for reason in reasons)
        return (
            f"{numbers['cells']} cells, {numbers['runs_submitted']} runs submitted; work lost: {lost}{notes}"
        )

    def _of(self, way: Way) -> list[Finding]:
        return [finding for finding in self._findings if finding.cell.way is way]

    def table(self) -> Table:
        """Each server and end, and how much of the work each way lost."""
        table = Table(box=box.SIMPLE, pad_edge=False)
        table.add_column("work lost")
        for way in Way:
            table.add_column(str(way).replace("-", "-\n"), justify="right", no_wrap=True)
        for server in SERVERS:
            rows = [(end, [self._cell(server, end, way) for way in Way]) for end in End]
            if any(any(cells) for _, cells in rows):
                table.add_row(f"[bold]{server}[/bold]")
            for end, cells in rows:
                if any(cells):
                    mark = " *" if impossible(server, end) else ""
                    table.add_row(f"  {end}{mark}", *(_styled(found) for found in cells))
        return table

    def _cell(self, server: Server, end: End, way: Way) -> list[Finding]:
        return [f for f in self._of(way) if f.cell.server is server and f.cell.end is end]

    def markdown(self) -> str:
        """The page docs/conformance.md, generated."""
        numbers = self.numbers()
        lines = [
            INTRODUCTION,
            "## In numbers",
            "",
            f"{numbers['cells']} cells, {numbers['runs_submitted']} runs submitted.",
            "",
            "| | " + " | ".join(f"`{way}`" for way in Way) + " |",
            "| --- |" + " ---: |" * len(Way),
            "| cells | " + " | ".join(str(numbers["cells_by_way"][way]) for way in Way) + " |",
            "| work lost | " + " | ".join(str(numbers["lost"][way]) for way in Way) + " |",
            "| of it, where Outlive promises something | "
            + " | ".join(str(numbers["lost_where_promised"][way]) for way in Way)
            + " |",
            "",
            LEGEND,
        ]
        for server in SERVERS:
            rows = [self._row(server, end) for end in End]
            if not any(rows):
                continue
            lines += [
                f"## {server}",
                "",
                "| end | " + " | ".join(f"`{way}`" for way in Way) + " |",
                "| --- |" + " --- |" * len(Way),
                *filter(None, rows),
                "",
            ]
            reasons = {reason for end in End if (reason := impossible(server, end))}
            lines += [f"*: {reason}." for reason in sorted(reasons)] + ([""] if reasons else [])
        lines += ["## How soon a handler is told", "", TOLD, "", *self._told(), "", "## Versions", ""]
        return "\n".join([*lines, ", ".join(versions()) + ".", ""])

    def _row(self, server: Server, end: End) -> str:
        cells = [self._cell(server, end, way) for way in Way]
        if not any(cells):
            return ""
        mark = " *" if impossible(server, end) else ""
        return f"| {end}{mark} | " + " | ".join(_told_in_words(found) for found in cells) + " |"

    def _told(self) -> Sequence[str]:
        ends = (End.CLOSE_FRAME, End.ABORT)
        lines = ["| server | " + " | ".join(ends) + " |", "| --- |" + " ---: |" * len(ends)]
        for server in SERVERS:
            longest = [
                max(
                    (
                        f.told_after
                        for f in self._findings
                        if f.told_after is not None
                        and (f.cell.server, f.cell.end, f.cell.handler) == (server, end, Handler.SENDS)
                    ),
                    default=None,
                )
                for end in ends
            ]
            if any(seconds is not None for seconds in longest):
                told = ["" if seconds is None else f"{seconds:.2f} s" for seconds in longest]
                lines.append(f"| {server} | " + " | ".join(told) + " |")
        return lines


def versions() -> Iterable[str]:
    """What of the packages that matter is installed."""
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            yield f"{package} {version(package)}"


def undone(finding: Finding) -> bool:
    """Whether the work wasn't done."""
    return finding.fate in (Fate.LOST, Fate.NEVER_BEGUN)


def _styled(found: Sequence[Finding]) -> str:
    if not found:
        return ""
    lost = sum(undone(finding) for finding in found)
    return f"[red]{lost} of {len(found)}[/red]" if lost else f"[green]0 of {len(found)}[/green]"


def _told_in_words(found: Sequence[Finding]) -> str:
    if not found:
        return "·"
    fates = Counter(finding.fate for finding in found)
    if fates[Fate.DONE] == len(found):
        return "done"
    if len(found) > 1 and not fates[Fate.DONE]:
        return "**all lost**"
    lost = [LABELS[f.cell.handler] + ("†" if f.fate is Fate.NEVER_BEGUN else "") for f in found if undone(f)]
    return f"**lost:** {', '.join(lost)}"


LABELS = {
    Handler.RECEIVES: "receives",
    Handler.SENDS: "sends",
    Handler.BOTH: "both",
    Handler.EVENTS: "events",
    Handler.STREAM: "stream",
    Handler.REQUEST: "request",
    Handler.BACKGROUND: "background",
}

INTRODUCTION = """\
# Conformance: what becomes of the work, on every server

Generated by `outlive conformance --full --markdown docs/conformance.md`; don't edit.

A cell is one real connection over loopback: a server, a kind of handler, an end, and a way to do the work after it. The work
calls a partner, takes a moment, and writes to a database; it is done if both have it, once. For Outlive's cells the
outcome, the counters, the spans and the disconnect's cause must be right as well, and at the end no run, connection, open span
or asyncio task may be left. `outlive conformance` plays a part of it on your machine, `--full` all of it.
"""

LEGEND = """\
The ways: `plain-await` awaits the work in the handler's clean-up; `anyio-shield` does so in `anyio.CancelScope(shield=True)`;
`asyncio-shield` awaits `asyncio.shield(work())`; `outlive` is `task.submit(...)`, and where the work follows a response
`after.add_task(task, ...)` instead of Starlette's background task; `outlive-awaited` is `await task(...)`. The first
three run in processes without Outlive.

The handlers: a WebSocket that receives, that only sends, that does both in a task group with the work inside it; server-sent events and a
streamed response with the work in the generator's `finally`; a plain request, with the work in its `finally`; a background task.
What holds for a server stands in its table: *done* in every handler, or the handlers in which the work was lost. † is work that
never began, since the handler was never told or never got there. · is a cell that means nothing. SIGTERM comes before the clients
leave, at the same time, or when their work is under way, to a server without a graceful timeout (*grace*) or with one of 1 s; the
work takes 1.6 s then. The restart of workers is the server's own, by a signal to their parent.
"""

TOLD = """\
From the moment in which the client leaves to the moment in which a WebSocket handler that only sends is told, with Outlive. Without it,
hypercorn, granian and daphne never tell such a handler."""
