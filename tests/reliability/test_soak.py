"""A short soak; `make soak` is the long one."""

import asyncio
import sys
from collections.abc import Callable

import pytest

from outlive_service.faults import FAULTS
from outlive_service.soak import over_time, soak, verdict


@pytest.mark.skipif(sys.platform != "linux", reason="memory and descriptors are read from /proc")
@pytest.mark.reliability(
    "soak", "45 s of mixed traffic, and one fault after the other is switched on and off"
)
def test_a_short_soak(result: Callable[[str], None]) -> None:
    seen = asyncio.run(soak(45.0, 20, 5))
    assert seen.problems == []
    assert set(seen.faults) == set(FAULTS)
    assert seen.account["lost"] == seen.account["doubled"] == 0
    assert seen.account["submitted"] == sum(seen.account["outcomes"].values()) > 0
    lines = list(over_time(seen))
    assert len({len(line) for line in lines}) == 1, lines
    first, last = seen.samples[0], seen.samples[-1]
    result(
        f"{verdict(seen)}; memory {first.memory:.0f} MB and then {last.memory:.0f} MB, descriptors {first.descriptors} and then "
        f"{last.descriptors}, threads {first.threads} and then {last.threads}"
    )
