"""Marked tests tell what they saw, and `--report FILE` writes it down: see `make reliability`."""

import os
import platform
import sqlite3
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pytest

from outlive_service.soak import over_time, read, verdict

FOLDER = Path(__file__).parent
SOAK = Path(__file__).parents[2] / "docs" / "soak.json"
GROUPS = {
    "overload": "Overload",
    "storm": "Storm",
    "fault": "Faults",
    "abuse": "Abuse",
    "soak": "Soak",
}
"""The tables of the report, in order."""

INTRODUCTION = """\
# Reliability

Written by `make reliability`, which runs every test in `tests/reliability` and takes some minutes; edit nothing here. Each row is one
test on the real programs: the service, its partner and clients, as processes with real sockets and a real database. *Lost* is what
the account at the end finds missing: it compares what the clients know with what the database and the partner's own records hold.
"""


HEAD = "| what is done | what was seen | passed |\n| --- | --- | --- |\n"


@dataclass(slots=True, eq=False)
class Rows:
    """What the tests of this session told, and the file that it is for: seen and passed, by group and what is done."""

    report: Path
    told: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    collected: list[tuple[str, str]] = field(default_factory=list)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which rows there are, if all of the folder's tests are to be run: the others are of tests that have gone."""
        if [Path(arg).resolve() for arg in session.config.args] == [
            FOLDER
        ] and not session.config.option.keyword:
            self.collected = [
                mark.args
                for item in getattr(session, "items", ())
                if (mark := item.get_closest_marker("reliability"))
            ]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the row of a test that has ended: its call, or a set-up that kept it from being called."""
        told = {name: str(value) for name, value in report.user_properties}
        if "group" in told and (report.when == "call" or (report.when == "setup" and not report.passed)):
            passed = "yes" if report.passed else "**no**"
            if report.skipped and isinstance(report.longrepr, tuple):
                passed = f"not run: {report.longrepr[2].removeprefix('Skipped: ')}"
            self.told[told["group"], told["what"]] = told.get("result", ""), passed

    def pytest_sessionfinish(self) -> None:
        """Write the report. What wasn't run this time stays as it is."""
        rows = (kept(self.report) if self.report.exists() else {}) | self.told
        parts = [INTRODUCTION, machine()]
        if self.collected:
            rows = {key: rows[key] for key in self.collected if key in rows}
        for group, title in GROUPS.items():
            table = [f"| {what} | {' | '.join(row)} |\n" for (of, what), row in rows.items() if of == group]
            if table:
                parts.append(f"## {title}\n\n{HEAD}{''.join(table)}")
        if SOAK.exists():
            seen = read(SOAK)
            parts.append(
                f"### The long one\n\n`make soak`, as it ended last: {verdict(seen)}. Memory, descriptors and threads are the "
                "service's.\n\n" + "\n".join(f"    {line}" for line in over_time(seen)) + "\n"
            )
        self.report.write_text("\n".join(parts))


def kept(report: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """The rows of a report."""
    groups = {title: group for group, title in GROUPS.items()}
    rows, group = {}, ""
    for line in report.read_text().splitlines():
        if line.startswith("## "):
            group = groups.get(line.removeprefix("## "), "")
        elif line.startswith("| ") and line not in HEAD:
            what, seen, passed = line.removeprefix("| ").removesuffix(" |").split(" | ")
            rows[group, what] = seen, passed
    return rows


def machine() -> str:
    """What the numbers were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in ("fastapi", "uvicorn", "websockets"))
    return (
        f"Measured on {platform.system()} ({platform.machine()}) with {os.cpu_count()} cores and {memory:.0f} GiB of memory:\n"
        f"Python {platform.python_version()}, {packages}, SQLite {sqlite3.sqlite_version}.\n"
        "Times depend on the machine and on what else it does; what was lost or counted must not.\n"
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--report",
        metavar="FILE",
        type=Path,
        default=None,
        help="write the report of the reliability tests there, and make storms and faults as large and long as it tells",
    )


def pytest_configure(config: pytest.Config) -> None:
    report = reported(config)
    if report is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Rows(report), "reliability rows")


def reported(config: pytest.Config) -> Path | None:
    # This conftest may be loaded after the command line was read: then nobody can have asked.
    report: Path | None = config.getoption("report", None)
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for item in items:
        mark = item.get_closest_marker("reliability")
        if mark is None:
            continue
        group, what = mark.args
        if group not in GROUPS:
            raise pytest.UsageError(f"{item.nodeid}: no group {group!r}; there are {', '.join(GROUPS)}")
        if (group, what) in seen:
            raise pytest.UsageError(f"{item.nodeid} and {seen[group, what]} would share one row: {what}")
        if "|" in what:
            raise pytest.UsageError(f"{item.nodeid}: a cell of a table can't hold {what!r}")
        seen[group, what] = item.nodeid
        item.user_properties += [("group", group), ("what", what)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    yield
    if item.get_closest_marker("reliability") and "result" not in dict(item.user_properties):
        pytest.fail("a test of reliability tells what it saw: result('...')")


@pytest.fixture
def result(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Tell what was seen, with the numbers measured, in one short sentence: the test's row in the report."""

    def tell(seen: str) -> None:
        properties = request.node.user_properties
        assert "result" not in dict(properties), "a test has one row"
        assert "|" not in seen, "a cell of a table"
        assert "\n" not in seen, "one sentence"
        properties.append(("result", seen))

    return tell


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether this is for the report: then the sizes are those that are promised, and else what a busy machine bears."""
    return reported(request.config) is not None


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
