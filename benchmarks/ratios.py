"""The ratios that count, and the targets that they are held against."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.results import Results

BARE = "bare shield + timeout"
FLOOR = "the floor, by hand"
AIOJOBS = "aiojobs + asyncio instrumentation"
SPANS = "the same, its spans only"


@dataclass(frozen=True)
class Ratio:
    """One line of the table."""

    suite: str
    what: str
    value: float
    unit: str = "x"
    at_most: float | None = None
    at_least: float | None = None

    @property
    def target(self) -> str:
        """The bound in words; empty where there is none."""
        if self.at_most is not None:
            return f"at most {self.at_most:g} {self.unit}".rstrip()
        return f"at least {self.at_least:g} {self.unit}" if self.at_least is not None else ""

    @property
    def kept(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return self.value >= self.at_least if self.at_least is not None else None


def ratios(results: Results) -> Iterator[Ratio]:
    """All of them, as far as they were measured."""
    yield from _micro(results)
    yield from _growth(results)
    yield from _scrapes(results)
    yield from _startup(results)
    yield from _system(results)
    for storm in results.get("storm", ()):
        if storm["hand"] != "Outlive":
            what = f"a storm of {storm['sockets']:,} sockets, to the last outcome / by hand"
            yield Ratio("storm", what, storm["outlive"], at_most=1.15)
            yield Ratio("storm", "the same, the server's CPU time", storm["outlive_cpu"])


def _micro(results: Results) -> Iterator[Ratio]:
    targets = {
        ("off", BARE): 1.25,
        ("unsampled", BARE): 1.8,
        ("sampled", FLOOR): 1.2,
        ("sampled", AIOJOBS): 0.7,
    }
    for cost in results.get("micro", ()):
        if cost["contender"].startswith("Outlive"):
            continue
        # A submitted run isn't waited for; the targets are about those that are.
        target = targets.get((cost["telemetry"], cost["contender"])) if cost["way"] == "awaited" else None
        what = f"{cost['way']} run, telemetry {cost['telemetry']} / {cost['contender']}, {cost['loop']}"
        if cost["contender"] != BARE or cost["telemetry"] != "sampled":
            yield Ratio("micro", what, cost["outlive"], at_most=target)


def _growth(results: Results) -> Iterator[Ratio]:
    for growth in results.get("growth", ()):
        running = f"{growth['running']:,} running"
        ours = growth["contender"].startswith("Outlive")
        if growth["slower"] != 1.0:
            what = f"{growth['contender']}: a run with {running} / with the least"
            yield Ratio("growth", what, growth["slower"], at_most=1.1 if ours else None)
        what = f"{growth['contender']}: memory a run, {running}"
        yield Ratio("growth", what, growth["bytes_a_run"] / 1024, "KiB", at_most=6.0 if ours else None)


def _scrapes(results: Results) -> Iterator[Ratio]:
    for scrape in results.get("scrape", ()):
        tasks = f"a scrape with {scrape['tasks']:,} tasks"
        limit = 10.0 if scrape["tasks"] == 100 else None
        yield Ratio("scrape", f"{tasks}: CPU time", scrape["milliseconds"], "ms", at_most=limit)
        yield Ratio(
            "scrape", f"{tasks} / prometheus-client's encoder", scrape["milliseconds"] / scrape["encoder"]
        )
        late = f"{tasks}: looks that found the event loop above 5 ms late, beyond those without a scrape"
        limit = 0.0 if scrape["tasks"] == 100 else None
        yield Ratio("scrape", late, scrape["late"] - scrape["late_anyway"], "", at_most=limit)
    for drain in results.get("drain", ()):
        yield Ratio("drain", f"a drain with {drain['in_flight']:,} in flight", drain["milliseconds"], "ms")


def _startup(results: Results) -> Iterator[Ratio]:
    for start in results.get("startup", ()):
        if start["program"] == "import outlive":
            yield Ratio(
                "startup", "import outlive, beyond asyncio", start["beyond_asyncio"], "ms", at_most=60
            )
        elif start["program"] == "outlive --help":
            yield Ratio("startup", "outlive --help", start["milliseconds"], "ms", at_most=250)
        elif start["program"] == "from outlive import Outlive":
            yield Ratio("startup", "from outlive import Outlive", start["milliseconds"], "ms")
        elif start["program"] == "import fastapi":
            yield Ratio("startup", "import fastapi", start["milliseconds"], "ms")


def _system(results: Results) -> Iterator[Ratio]:
    least = {
        ("messages", "Outlive", "plain"): 0.95,
        ("requests", "Outlive + one span", "plain + one span"): 0.9,
        ("requests", "Outlive + one span", "FastAPI's own telemetry"): 1.0,
        ("requests", "Outlive + FastAPI's own span", "FastAPI's own telemetry"): 1.0,
        ("requests", "Outlive + one span", "contrib's defaults"): 1.0,
    }
    for pair in results.get("compared", ()):
        key = (pair["kind"], pair["dress"], pair["other"])
        what = f"{pair['kind']}: {pair['dress']} / {pair['other']}"
        yield Ratio("system", f"{what}, a second", pair["per_second"], at_least=least.get(key))
        p99 = 1.1 if key == ("messages", "Outlive", "plain") else None
        yield Ratio("system", f"{what}, p99", pair["p99"], at_most=p99)
        yield Ratio("system", f"{what}, the server's CPU time", pair["cpu"])
