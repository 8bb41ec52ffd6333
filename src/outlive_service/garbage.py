"""Python's garbage collector, kept from holding up a process with thousands of connections."""

import ctypes
import gc
import sys

STEP = 1_000
"""So many connections more, and what they hold is taken out of the collector's sight; so many fewer, and it is looked at."""
THRESHOLDS = (10_000, 10, 50)


class Garbage:
    """Decides when the collector looks at what.

    A full collection looks at every object, so with thousands of connections it stops everything for a second and
    more, again and again while they come. What has been there for long is no garbage: it is frozen, which costs
    nothing, each time that the connections are `STEP` more than ever before; so what may rot there unseen is bounded
    by what that many connections hold. When they have gone and nothing is left to do, all of it is looked at, and
    the memory given back to the system.
    """

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)
        self._frozen_at = 0

    def look(self, connections: int, *, at_rest: bool) -> None:
        """Freeze, collect, or do nothing, as the number of connections asks for."""
        if connections >= self._frozen_at + STEP:
            gc.freeze()
            self._frozen_at = connections
        elif at_rest and connections <= self._frozen_at - STEP:
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            self._frozen_at = connections
            _give_back()


def _give_back() -> None:
    # The allocator of glibc keeps what was freed below its last used page, and only it needs to be asked.
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
