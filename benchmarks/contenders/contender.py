"""What is compared: one way to run a piece of work, and the work."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

TIMEOUT = 5.0
"""The deadline of each run, in seconds. None passes."""


class Telemetry(StrEnum):
    """What is told of each run."""

    OFF = "off"
    """Nothing."""
    UNSAMPLED = "unsampled"
    """The metrics, and a span that the sampler drops."""
    SAMPLED = "sampled"
    """The metrics, and a span that is kept, with an exemplar. Nothing exports it: that costs all the same."""

    def provider(self) -> TracerProvider:
        """The SDK's provider, with the sampler that most services have."""
        share = 1.0 if self is Telemetry.SAMPLED else 0.0
        return TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)), shutdown_on_exit=False)


class Work:
    """A piece of work that is suspended once, as all that waits for something is, and counts itself."""

    def __init__(self) -> None:
        self.done = 0

    async def __call__(self) -> None:
        """Do it."""
        await asyncio.sleep(0)
        self.done += 1

    async def wait_for(self, done: int) -> None:
        """Wait until so many are done, and the bookkeeping of the last one too."""
        while self.done < done:
            await asyncio.sleep(0)
        await asyncio.sleep(0)


@dataclass(frozen=True)
class Ways:
    """How a contender runs the work."""

    awaited: Callable[[], Awaitable[object]]
    """One run that is waited for."""
    submitted: Callable[[int], Awaitable[object]] | None = None
    """So many runs that nobody waits for; it returns when they are submitted."""
    told: Callable[[], float] | None = None
    """How many runs the telemetry knows of."""
    surroundings: Callable[[], AbstractContextManager[object]] = nullcontext
    """What must be there while it is measured, and must not while others are."""


@dataclass(frozen=True)
class Contender:
    """One way to run a piece of work outside of its caller."""

    name: str
    left_out: str
    """What it doesn't do that Outlive does."""
    telemetry: tuple[Telemetry, ...]
    start: Callable[[Work, Telemetry], AbstractAsyncContextManager[Ways]]
