"""`python -m benchmarks.page`: docs/performance.md and its picture, from the results. `--check` compares only."""

import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.plot import cost_against_load
from benchmarks.processes import LOOPS
from benchmarks.ratios import FLOOR, SPANS, Ratio, ratios
from benchmarks.results import Results, read

DOCS = Path(__file__).parents[1] / "docs"

HEAD = """\
# What it costs

<!-- Made by `python -m benchmarks.page` from benchmarks/results.json. To change it, change benchmarks/page.py. -->

All of this is printed by one command, `make bench`, which anyone can repeat; `make performance` makes this page of what it has
measured. Every number is the median of many rounds. In each round everything that is compared has its turn, so that a
busy machine slows all of it down alike; a ratio is that of two measurements of one round, and a storm's that of two medians. Where the clock is
CPU time, it stands still while other processes have the processor. From one process to the next the same code differs by some hundredths, so a run
and a server are measured in several; what is as near as that to its target may be on the other side of it in another run. Absolute times are
this machine's; ratios travel better.

Measured on {date} with {python}, {system}, {cores} cores: {versions}.

## The targets

{targets}

## One run

A run waits once, as all work does, and ends well. *The floor* is the same result written by hand for one task by somebody who
knows how: `asyncio.shield`, `asyncio.timeout`, one span of the SDK with the same attributes, and the same Prometheus series, looked up
once. *Off*: nothing is told. *Unsampled*: the metrics, and a span that the sampler drops. *Sampled*: the span is kept, with an exemplar;
nothing is exported. No log line is written (Outlive's are at level info). Microseconds of CPU time; in brackets, Outlive as a multiple of it.

{micro}

What they leave out:

{left_out}

The instrumentation measures what it runs, so it has a meter provider, as the others have their metrics. With its spans only it leaves out so
much that the floor itself takes {floor} times as long.

A bare shield has no owner, and loses its work where the table in the [README](../README.md) says so.

## More of them

While so many others execute, one more run costs:

![Microseconds a run against the runs that execute meanwhile](performance.svg)

{growth}

The timeouts of a task are one timer, since they pass in the order of the starts; memory is told by `tracemalloc`, beyond what a bare
asyncio task of the same coroutine takes. A kept span is most of it.

## Scrapes, drains, start

{scrapes}

Each task has run since the last scrape, and has five outcomes, each a histogram. CPU time is the whole service's, from the request to the last byte; the
encoder's is that of rendering alone. *Late* is how often the event loop's
lag was above 5 ms, of all looks in the seconds with a scrape, and of as many without: what both have is the machine's. A drain
starts when all runs in flight could end at once:

{drains}

{starts}

## Servers

uvicorn in several processes, one after the other, and eight connections on the loopback, each of which asks for the next thing when it has the last
one. The spans go to an exporter that drops them. *One span* is that of `opentelemetry-instrumentation-fastapi` without one for each message,
as the template has it; it is in both, or in neither. It wraps each message all the same, FastAPI's own span doesn't; Outlive goes with either.

{served}

{compared}

What they leave out:

{dresses}

## A storm

{storm}

Ten thousand WebSockets are dropped at once, and something must be saved for each. By hand that is a task in a set, a deadline, a
span and the floor's series. Outlive also tells connections, disconnects, their causes and tails, and makes a second span: the flow's.
"""


def page(results: Results) -> str:
    """The text."""
    return HEAD.format(
        **{name: results[name] for name in ("date", "python", "system", "cores")},
        versions=", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        targets=_targets(ratios(results)),
        micro=_micro(results["micro"]),
        left_out=_list(results["left_out"]),
        floor=_floor(results["micro"]),
        growth=_growth(results["growth"]),
        scrapes=_scrapes(results["scrape"]),
        drains=_table(
            ("in flight", "CPU time", "a run"),
            (
                (
                    f"{one['in_flight']:,}",
                    f"{one['milliseconds']:.0f} ms",
                    f"{one['microseconds_a_run']:.0f} µs",
                )
                for one in results["drain"]
            ),
        ),
        starts=_table(
            ("program", "CPU time", "beyond asyncio"),
            (
                (f"`{one['program']}`", f"{one['milliseconds']:.0f} ms", f"{one['beyond_asyncio']:.0f} ms")
                for one in results["startup"]
            ),
        ),
        served=_served(results["served"]),
        compared=_compared(results["compared"]),
        dresses=_list(results["dresses"]),
        storm=_storm(results["storm"]),
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names = list(head)
    rules = ["---", *["--:"] * (len(names) - 1)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (names, rules, *rows))


def _list(entries: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {text}." for name, text in entries.items())


def _targets(found: Iterable[Ratio]) -> str:
    return _table(
        ("Outlive / the other", "measured", "target", ""),
        (
            (
                ratio.what,
                f"{ratio.value:.2f} {ratio.unit}".rstrip(),
                ratio.target,
                "kept" if ratio.kept else "**missed**",
            )
            for ratio in found
            if ratio.kept is not None
        ),
    )


def _micro(costs: list[Results]) -> str:
    columns = [
        (loop, way, telemetry)
        for loop in LOOPS
        for way in ("awaited", "submitted")
        for telemetry in ("off", "unsampled", "sampled")
    ]
    tables = []
    for loop in LOOPS:
        own = [column for column in columns if column[0] == loop]
        cells = {
            (cost["contender"], cost["way"], cost["telemetry"]): (
                f"{cost['microseconds']:.1f}"
                + ("" if cost["contender"] == "Outlive" else f" ({cost['outlive']:.2f})")
            )
            for cost in costs
            if cost["loop"] == loop
        }
        names = dict.fromkeys(cost["contender"] for cost in costs)
        tables.append(
            _table(
                (loop, *(f"{way}, {telemetry}" for _, way, telemetry in own)),
                (
                    (name, *(cells.get((name, way, telemetry), "") for _, way, telemetry in own))
                    for name in names
                ),
            )
        )
    return "\n\n".join(tables)


def _floor(costs: list[Results]) -> str:
    microseconds = {
        (cost["loop"], cost["contender"]): cost["microseconds"]
        for cost in costs
        if (cost["way"], cost["telemetry"]) == ("awaited", "sampled")
    }
    return " and ".join(
        f"{microseconds[loop, FLOOR] / microseconds[loop, SPANS]:.2f} ({loop})" for loop in LOOPS
    )


def _growth(growth: list[Results]) -> str:
    loads = sorted({point["running"] for point in growth})
    cells = {
        (point["contender"], point["running"]): (
            f"{point['microseconds']:.1f} µs ({point['slower']:.2f}), {point['bytes_a_run'] / 1024:.1f} KiB"
        )
        for point in growth
    }
    names = dict.fromkeys(point["contender"] for point in growth)
    return _table(
        ("time (as a multiple of the least loaded), memory of each", *(f"{load:,}" for load in loads)),
        ((name, *(cells[name, load] for load in loads)) for name in names),
    )


def _scrapes(scrapes: list[Results]) -> str:
    return _table(
        ("tasks", "lines", "CPU time", "the first", "prometheus-client's encoder", "late", "late without"),
        (
            (
                f"{one['tasks']:,}",
                f"{one['lines']:,}",
                *(f"{one[name]:.1f} ms" for name in ("milliseconds", "first_milliseconds", "encoder")),
                f"{one['late']} of {one['looks']}",
                one["late_anyway"],
            )
            for one in scrapes
        ),
    )


def _served(served: list[Results]) -> str:
    kinds = list(dict.fromkeys(one["kind"] for one in served))
    cells = {
        (one["dress"], one["kind"]): (
            f"{one['per_second']:,.0f} a second, p99 {one['p99_milliseconds']:.2f} ms, {one['cpu_microseconds']:.0f} µs"
        )
        for one in served
    }
    return _table(
        ("rate, slowest of a hundred, the server's CPU time for each", *kinds),
        (
            (dress, *(cells[dress, kind] for kind in kinds))
            for dress in dict.fromkeys(one["dress"] for one in served)
        ),
    )


def _compared(compared: list[Results]) -> str:
    kinds = list(dict.fromkeys(one["kind"] for one in compared))
    cells = {
        (one["dress"], one["other"], one["kind"]): (
            f"{one['per_second']:.2f}, {one['p99']:.2f}, {one['cpu']:.2f}"
        )
        for one in compared
    }
    pairs = dict.fromkeys((one["dress"], one["other"]) for one in compared)
    return _table(
        ("as a multiple: rate, slowest of a hundred, CPU time", *kinds),
        ((f"{dress} / {other}", *(cells[dress, other, kind] for kind in kinds)) for dress, other in pairs),
    )


def _storm(storms: list[Results]) -> str:
    return _table(
        ("", "sockets", "drop to last outcome", "the server's CPU time", "Outlive / it: time", "CPU time"),
        (
            (
                one["hand"],
                f"{one['sockets']:,}",
                f"{one['seconds']:.2f} s",
                f"{one['cpu_seconds']:.2f} s",
                f"{one['outlive']:.2f}",
                f"{one['outlive_cpu']:.2f}",
            )
            for one in storms
        ),
    )


def main(*options: str) -> None:
    """Write the files; with `--check`, say which of them isn't what the results make, and leave with 1 if any."""
    results = read()
    made: dict[Path, str] = {
        DOCS / "performance.md": page(results),
        DOCS / "performance.svg": cost_against_load(results["growth"]),
    }
    if "--check" in options:
        wrong = [file.name for file, text in made.items() if not file.exists() or file.read_text() != text]
        if wrong:
            sys.exit(f"run `make performance` and commit {' and '.join(wrong)}")
        return
    for file, text in made.items():
        file.write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
