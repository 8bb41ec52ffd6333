"""The chapters of story.py as fixtures, so that each begins where the one before it ended."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest's importlib mode leaves sys.path alone, and the tests share modules of this folder.
sys.path.insert(0, str(Path(__file__).parent))

from scraped_names import ScrapedNames
from story import (
    Drained,
    Healthy,
    Outage,
    Stack,
    Trouble,
    be_healthy,
    drain,
    go_through_outages,
    stack_in,
    trouble_in,
)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything on its feet, and nobody there yet."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Two at once would only measure each other.
        try:
            (tmp_path_factory.getbasetemp().parent / "story").mkdir()
        except FileExistsError:
            pytest.fail(
                "another worker tells the story too: xdist needs --dist loadgroup,"
                " and pytest below 9.2 (pytest-dev/pytest-xdist#1386)"
            )
    with stack_in(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture(scope="session")
def healthy(stack: Stack) -> Healthy:
    """Traffic without faults."""
    return be_healthy(stack)


@pytest.fixture(scope="session")
def outages(stack: Stack, healthy: Healthy) -> dict[str, Outage]:
    """Each part of the pipeline away for a while, one after the other."""
    return go_through_outages(stack)


@pytest.fixture(scope="session")
def trouble(stack: Stack, outages: dict[str, Outage]) -> Iterator[Trouble]:
    """Injected faults."""
    with trouble_in(stack) as trouble:
        yield trouble


@pytest.fixture(scope="session")
def drained(stack: Stack, trouble: Trouble) -> Drained:
    """The service stopped in the middle of everything, and not started again."""
    return drain(stack, trouble)


@pytest.fixture(scope="session")
def names(stack: Stack, drained: Drained) -> ScrapedNames:
    """The names of everything that was scraped in the whole story."""
    return ScrapedNames(stack.prometheus, stack.started, drained.moment)
