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


def _micro(smoke: bool) -> Results:
    costs = micro.measure(1, 3) if smoke else micro.measure(3, 50)
    return {"micro": plain(costs), "left_out": {one.name: one.left_out for one in CONTENDERS}}


def _growth(smoke: bool) -> Results:
    return {"growth": plain(growth.measure((10, 100), 3) if smoke else growth.measure(growth.LOADS, 30))}


def _scrape(smoke: bool) -> Results:
    return {"scrape": plain(scrape.measure((10,), 3) if smoke else scrape.measure(scrape.TASKS, 20))}


def _drain(smoke: bool) -> Results:
    return {"drain": plain(drain.measure((10, 100), 1) if smoke else drain.measure(drain.IN_FLIGHT, 3))}


def _startup(smoke: bool) -> Results:
    return {"startup": plain(startup.measure(1 if smoke else 11))}


def _system(smoke: bool) -> Results:
    served, compared = system.measure(1, 0.1) if smoke else system.measure(20, 0.25)
    return {"served": plain(served), "compared": plain(compared), "dresses": DRESSES}


def _storm(smoke: bool) -> Results:
    return {"storm": plain(storm.measure(200, 1) if smoke else storm.measure(10_000, 3))}


SUITES: dict[Suite, Callable[[bool], Results]] = {
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
    out: Annotated[Path, typer.Option(help="The file of the results.", dir_okay=False)] = FILE,
) -> None:
    """Measure Outlive beside its peers and the floor."""
    console = Console()
    results = read(out) if only and not smoke else {}
    for suite in only or SUITES:
        began = time.monotonic()
        with console.status(f"{suite} …"):
            results |= SUITES[suite](smoke)
        console.print(f"{suite}: {time.monotonic() - began:.0f} s", highlight=False)
    results |= surroundings()
    console.print(_table(results))
    if not smoke:
        write(results, out)
        console.print(
            f"kept in {out.name}; `python -m benchmarks.page` makes the page of it", highlight=False
        )


def _table(results: Results) -> Table:
    table = Table("", "", "", "target", title="Medians of all rounds", box=None)
    for ratio in ratios(results):
        mark = {None: "", True: "[green]kept", False: "[red]missed"}[ratio.kept]
        table.add_row(ratio.suite, ratio.what, f"{ratio.value:.2f} {ratio.unit}", f"{ratio.target} {mark}")
    return table


if __name__ == "__main__":
    typer.run(main)
