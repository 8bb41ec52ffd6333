"""`python -m benchmarks`: measure, print one table of ratios, and keep the results."""

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import drain, growth, micro, scrape, startup, storm, system
from benchmarks.applications import DRESSES
from benchmarks.contenders import CONTENDERS
from benchmarks.ratios import ratios
from benchmarks.results import FILE, Results, plain, read, surroundings, write


class Suite(StrEnum):
    """What can be measured by itself."""

    MICRO = "micro"
    GROWTH = "growth"
    SCRAPE = "scrape"
    DRAIN = "drain"
    STARTUP = "startup"
    SYSTEM = "system"
    STORM = "storm"


class Effort:
    """How much is measured.

    Parameters:
        share: of the rounds of a whole run; None for a smoke run, which only shows that everything works.
    """

    def __init__(self, share: float | None) -> None:
        self.smoke = share is None
        self._share = share or 0.0

    def rounds(self, whole: int) -> int:
        """So many rounds, of so many in a whole run."""
        return 2 if self.smoke else max(2, round(whole * self._share))


def _micro(effort: Effort) -> Results:
    costs = micro.measure(1 if effort.smoke else 3, effort.rounds(50))
    return {"micro": plain(costs), "left_out": {one.name: one.left_out for one in CONTENDERS}}


def _growth(effort: Effort) -> Results:
    return {"growth": plain(growth.measure((10, 100) if effort.smoke else growth.LOADS, effort.rounds(40)))}


def _scrape(effort: Effort) -> Results:
    return {"scrape": plain(scrape.measure((10,) if effort.smoke else scrape.TASKS, effort.rounds(20)))}


def _drain(effort: Effort) -> Results:
    return {"drain": plain(drain.measure((10, 100) if effort.smoke else drain.IN_FLIGHT, effort.rounds(5)))}


def _startup(effort: Effort) -> Results:
    return {"startup": plain(startup.measure(effort.rounds(11)))}


def _system(effort: Effort) -> Results:
    served, compared = system.measure(1 if effort.smoke else effort.rounds(5), 0.05 if effort.smoke else 0.25)
    return {"served": plain(served), "compared": plain(compared), "dresses": DRESSES}


def _storm(effort: Effort) -> Results:
    return {"storm": plain(storm.measure(200 if effort.smoke else 10_000, effort.rounds(5)))}


SUITES: dict[Suite, Callable[[Effort], Results]] = {
    Suite.MICRO: _micro,
    Suite.GROWTH: _growth,
    Suite.SCRAPE: _scrape,
    Suite.DRAIN: _drain,
    Suite.STARTUP: _startup,
    Suite.SYSTEM: _system,
    Suite.STORM: _storm,
}


def main(
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A minute: that all of it runs and counts right. Keeps nothing.")
    ] = False,
    only: Annotated[
        list[Suite] | None, typer.Option(help="Measure this alone, and keep the other results; repeatable.")
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Measure this share of the rounds of a whole run.")
    ] = 1.0,
    out: Annotated[Path, typer.Option(help="The file of the results.", dir_okay=False)] = FILE,
) -> None:
    """Measure Outlive beside its peers and the floor."""
    console = Console()
    effort = Effort(None if smoke else share)
    unfinished = out.with_suffix(".unfinished.json")
    results = (read(out) if only and not smoke else {}) | surroundings()
    for suite in only or SUITES:
        began = time.monotonic()
        with console.status(f"{suite} …"):
            results |= SUITES[suite](effort)
        if not smoke:
            write(results, unfinished)
        console.print(f"{suite}: {time.monotonic() - began:.0f} s", highlight=False)
    console.print(_table(results))
    if not smoke:
        unfinished.replace(out)
        console.print(f"kept in {out.name}; `make performance` makes the page of it", highlight=False)


def _table(results: Results) -> Table:
    table = Table("", "", "", "target", title="Medians of all rounds", box=None)
    for ratio in ratios(results):
        mark = {None: "", True: "[green]kept", False: "[red]missed"}[ratio.kept]
        table.add_row(
            ratio.suite, ratio.what, f"{ratio.value:.2f} {ratio.unit}".rstrip(), f"{ratio.target} {mark}"
        )
    return table


if __name__ == "__main__":
    typer.run(main)
