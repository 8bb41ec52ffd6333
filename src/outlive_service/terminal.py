"""The demo in a terminal: numbers, disconnect flows as waterfalls, and the account."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from outlive_service.account import OUTCOMES, Account, Counters
from outlive_service.demo import Addresses, Look

COLOURS = {
    "completed": "green",
    "timed_out": "yellow",
    "cancelled": "cyan",
    "failed": "red",
    "rejected": "magenta",
}
MARKS = {"completed": "✔", "timed_out": "◔", "cancelled": "⊘", "failed": "✘", "rejected": "∅"}
"""So that outcomes can be told apart without colours."""
CAUSES = ("client_closed", "client_lost", "server_shutdown", "error")
STATES = {"open": "green", "draining": "yellow", "closed": "red"}
BAR = 32
"""Columns of a waterfall's time axis."""


def view(
    addresses: Addresses, look: Look | None, elapsed: float, seconds: float | None, flows: int
) -> RenderableType:
    """The whole picture at one moment, with so many flows."""
    if look is None:
        return Panel("waiting for the service …", title="Outlive")
    of = "" if seconds is None else f" of {seconds:g}"
    time = f"  {elapsed:.0f}{of} s" if seconds is None or elapsed <= seconds else "  the last clients leave"
    title = Text.assemble(
        ("Outlive ", "bold"),
        (look.state, f"bold {STATES.get(look.state, 'white')}"),
        time,
    )
    numbers = Table.grid(padding=(0, 3), expand=True)
    numbers.add_row(connections(look.gauges), disconnects(look.counters), outcomes(look.counters), work(look))
    return Panel(
        Group(numbers, Text(), *waterfalls(various(look.flows, flows))),
        title=title,
        subtitle=Text.assemble(
            (addresses.live, "bold"),
            (f"  {addresses.service}/metrics  {addresses.partner}/records  Ctrl-C drains", "dim"),
        ),
        padding=(1, 2),
    )


def _numbers(title: str, rows: Mapping[str, str], styles: Mapping[str, str] | None = None) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, value, style=(styles or {}).get(name))
    return table


def connections(gauges: Mapping[str, float]) -> Table:
    """Open connections by transport."""
    return _numbers(
        "connections", {name: f"{gauges.get(name, 0):.0f}" for name in ("websocket", "sse", "http")}
    )


def disconnects(counters: Counters) -> Table:
    """Disconnects by cause."""
    return _numbers("disconnects", {cause: str(counters.disconnects.get(cause, 0)) for cause in CAUSES})


def outcomes(counters: Counters) -> Table:
    """Runs by outcome."""
    sums = {outcome: sum(runs.get(outcome, 0) for runs in counters.runs.values()) for outcome in OUTCOMES}
    rows = {f"{MARKS[outcome]} {outcome}": str(number) for outcome, number in sums.items()}
    return _numbers("runs", rows, {f"{MARKS[outcome]} {outcome}": COLOURS[outcome] for outcome in OUTCOMES})


def work(look: Look) -> Table:
    """What is under way, and how long the tail is."""
    return _numbers(
        "now",
        {
            "running": f"{look.gauges.get('outlive_runs_running', 0):.0f}",
            "pending": f"{look.gauges.get('outlive_runs_pending', 0):.0f}",
            "stuck": f"{look.gauges.get('outlive_runs_stuck', 0):.0f}",
            "tail p50": seconds_text(look.counters.tail_p50),
            "tail p99": seconds_text(look.counters.tail_p99),
        },
    )


def seconds_text(seconds: float | None) -> str:
    """A duration as a person reads it."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def various(flows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """The newest flows, those first that differ from the ones before in route or outcomes."""
    seen: set[tuple[object, ...]] = set()
    new: list[dict[str, Any]] = []
    known: list[dict[str, Any]] = []
    for flow in flows:
        outcomes = (span["attributes"].get("outlive.outcome") for span in flow["spans"])
        kind = (flow["route"], *sorted(outcome for outcome in outcomes if outcome))
        (known if kind in seen else new).append(flow)
        seen.add(kind)
    return [*new, *known][:most]


def waterfalls(flows: list[dict[str, Any]]) -> list[RenderableType]:
    """The disconnect flows, newest first."""
    if not flows:
        return [Text("no disconnect flow has ended yet", style="dim")]
    return [waterfall(flow) for flow in flows]


def waterfall(flow: dict[str, Any]) -> Table:
    """One disconnect flow: a bar for each span, from the disconnect to the end of the last run."""
    table = Table(
        title=f"disconnect {flow['route']}  ({flow['cause']})  trace {flow['trace_id']}",
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column(width=26, no_wrap=True)
    table.add_column(width=BAR, no_wrap=True)
    table.add_column(justify="right", width=8, no_wrap=True)
    table.add_column(no_wrap=True)
    whole = max([flow["tail"], *(span["start"] + span["duration"] for span in flow["spans"])]) or 1e-9
    for span, depth in _in_order(flow["spans"]):
        outcome = span["attributes"].get("outlive.outcome")
        colour = COLOURS.get(outcome or "", "red" if span["error"] else "blue")
        begin = min(BAR - 1, max(0, round(span["start"] / whole * BAR)))
        length = min(BAR - begin, max(1, round(span["duration"] / whole * BAR)))
        told = f"{MARKS[outcome]} {outcome}" if outcome else ""
        error = span["attributes"].get("error.type")
        if error and error != outcome:
            told += f" {error}"
        table.add_row(
            Text("  " * depth + ("tail" if depth == 0 else span["name"]), style="bold" if depth == 0 else ""),
            Text(" " * begin + "━" * length, style=colour),
            seconds_text(span["duration"]),
            Text(told, style=colour),
        )
    return table


def _in_order(spans: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    children: dict[str | None, list[dict[str, Any]]] = {}
    for span in spans:
        children.setdefault(span["parent_id"], []).append(span)

    def below(parent: str | None, depth: int) -> list[tuple[dict[str, Any], int]]:
        found = []
        for span in children.get(parent, ()):
            found += [(span, depth), *below(span["span_id"], depth + 1)]
        return found

    return below(None, 0)


def account_view(account: Account) -> RenderableType:
    """The account at the end."""
    table = Table(title="The account", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("submitted", *OUTCOMES, "lost", "doubled"):
        table.add_column(column, justify="right", style=COLOURS.get(column), no_wrap=True)
    table.add_row(
        str(account.submitted),
        *(str(account.outcomes.get(outcome, 0)) for outcome in OUTCOMES),
        Text(str(account.lost), style="bold red" if account.lost else "bold green"),
        Text(str(account.doubled), style="bold red" if account.doubled else "bold green"),
    )
    verdict = (
        Text(
            "Every save, notice, bill and lease that the clients are owed is in the database and the partner's "
            "records, once, or was told by an outcome.",
            style="green",
        )
        if account.balanced
        else Text("\n".join(account.errors), style="red")
    )
    return Group(table, verdict)


def save_picture(path: Path, *parts: RenderableType) -> None:
    """Write the parts one below the other as an SVG that loads nothing from anywhere."""
    console = Console(
        record=True, width=110, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for part in parts:
        console.print(part)
        console.print()
    svg = console.export_svg(title="outlive demo")
    path.write_text(re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL))
