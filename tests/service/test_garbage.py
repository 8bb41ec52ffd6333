"""The collector doesn't look at what thousands of connections hold, until they have gone."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from outlive_service.garbage import STEP, Garbage


class Cycle:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def garbage() -> Iterator[Garbage]:
    thresholds = gc.get_threshold()
    yield Garbage()
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_many_connections_are_frozen_and_looked_at_when_they_have_gone(garbage: Garbage) -> None:
    garbage.look(STEP - 1, at_rest=True)
    frozen = gc.get_freeze_count()
    cycle = Cycle()
    seen = weakref.ref(cycle)
    garbage.look(STEP, at_rest=False)
    assert gc.get_freeze_count() > frozen
    del cycle
    gc.collect()
    assert seen() is not None
    # Not while there is work, and not for a few that have gone.
    garbage.look(0, at_rest=False)
    garbage.look(STEP // 2, at_rest=True)
    assert seen() is not None
    garbage.look(0, at_rest=True)
    assert seen() is None


def test_only_more_connections_than_ever_are_frozen(garbage: Garbage) -> None:
    garbage.look(5 * STEP, at_rest=False)
    frozen = gc.get_freeze_count()
    kept = [Cycle() for _ in range(100)]
    for connections in (5 * STEP, 4 * STEP + 1, 5 * STEP + STEP // 2):
        garbage.look(connections, at_rest=False)
    assert gc.get_freeze_count() <= frozen
    assert kept
