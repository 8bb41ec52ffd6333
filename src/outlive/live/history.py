"""How many runs had which outcome over the last minutes: a few numbers every few seconds, whether anybody looks or not."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context

from outlive.outcomes import Outcome

INTERVAL = 5.0
"""Seconds from one sample to the next."""
SPAN = 300.0
"""Seconds that are kept."""

Sample = tuple[float, ...]
"""The time in seconds since the epoch, then the runs so far by outcome, in the order of `Outcome`."""


class History:
    """The last samples of the runner's own counts. A sample costs about a microsecond."""

    def __init__(self, outcomes: Callable[[], Mapping[Outcome, int]]) -> None:
        self._outcomes = outcomes
        # One more than intervals, since a rate is the difference of two.
        self._samples: deque[Sample] = deque(maxlen=int(SPAN / INTERVAL) + 1)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def samples(self) -> list[Sample]:
        """What is kept, oldest first."""
        return list(self._samples)

    def start(self) -> None:
        """Begin to keep samples, on the running event loop."""
        self.stop()
        self._samples.clear()
        loop = asyncio.get_running_loop()
        self._take(loop, loop.time(), Context())

    def stop(self) -> None:
        """Keep what there is."""
        if self._timer is not None:
            self._timer.cancel()

    def _take(self, loop: asyncio.AbstractEventLoop, due: float, clean: Context) -> None:
        self._samples.append((round(time.time(), 3), *self._outcomes().values()))
        # Counted from when it was due: what a busy loop is late by must not add up.
        due += INTERVAL
        self._timer = loop.call_at(due, self._take, loop, due, clean, context=clean)
