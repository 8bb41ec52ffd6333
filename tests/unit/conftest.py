"""Event loops to test on. Time is virtual: it jumps to the next timer as soon as nothing else is to be done."""

import asyncio
import selectors
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from prometheus_client import CollectorRegistry

from outlive import Outlive

R = TypeVar("R")
Run = Callable[[Coroutine[Any, Any, R]], R]


class JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for a timer, it moves the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            # Nothing is scheduled: only another thread or a socket can go on. A test that hangs should say so.
            events = super().select(10)
            assert events, "the event loop has nothing to do and nothing to wait for: a deadlock"
            return events
        events = super().select(0)
        if not events and timeout > 0:
            self.now += timeout
        return events


class VirtualClockLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        # A nanosecond more than asked for, or a timer could be due in so little that the clock can't show it.
        return self._jumping.now + 1e-9


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = VirtualClockLoop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    return loop


def uvloop_loop() -> asyncio.AbstractEventLoop:
    return pytest.importorskip("uvloop").new_event_loop()  # type: ignore[no-any-return]


VIRTUAL: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": VirtualClockLoop}
if sys.version_info >= (3, 12):
    VIRTUAL["eager"] = eager_loop


@pytest.fixture(params=VIRTUAL)
def run(request: pytest.FixtureRequest) -> Run[Any]:
    """Run a coroutine in virtual time."""
    return lambda main: asyncio.Runner(loop_factory=VIRTUAL[request.param]).run(main)


@pytest.fixture(params=[*VIRTUAL, "uvloop"])
def run_anywhere(request: pytest.FixtureRequest) -> Run[Any]:
    """Run a coroutine that needs no time to pass, on uvloop too."""
    factory = {**VIRTUAL, "uvloop": uvloop_loop}[request.param]

    def run(main: Coroutine[Any, Any, R]) -> R:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main)

    return run


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def outlive(registry: CollectorRegistry) -> Outlive:
    return Outlive(registry=registry)
