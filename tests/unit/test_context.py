"""Promise 6: a run has its caller's context variables, and the runner's own doings have nobody's."""

import asyncio
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from outlive import Observer, Outlive, RunTimedOut

user: ContextVar[str] = ContextVar("user", default="nobody")


def test_a_run_sees_what_its_caller_saw_at_submit(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=1)
    seen = []

    @outlive.task(timeout=5.0)
    async def look() -> None:
        seen.append(user.get())
        await asyncio.sleep(1)
        seen.append(user.get())

    async def main() -> None:
        async with serving(outlive):
            user.set("ann")
            look.submit()
            user.set("bob")
            look.submit()
            user.set("cid")

    run(main())
    assert seen == ["ann", "ann", "bob", "bob"]


def test_what_a_run_changes_stays_in_it(run: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=5.0)
    async def change() -> None:
        user.set("somebody else")
        await asyncio.sleep(1)

    async def main() -> None:
        async with serving(outlive):
            user.set("ann")
            await change()
            assert user.get() == "ann"

    run(main())


def test_every_asyncio_task_has_the_tasks_name(run: Any, serving: Any, outlive: Outlive) -> None:
    names = []

    @outlive.task(timeout=5.0, name="save transcript")
    async def save() -> None:
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(1)
        names.append(task.get_name())

    async def main() -> None:
        async with serving(outlive):
            save.submit()
            await asyncio.sleep(0)
            assert "save transcript" in {task.get_name() for task in asyncio.all_tasks()}

    run(main())
    assert names == ["save transcript"]


class ContextObserver(Observer):
    """Notes whose context it is told in."""

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}

    def _note(self, event: str) -> None:
        self.seen.setdefault(event, []).append(user.get())

    def run_started(self, run: Any, wait: float, queued: bool) -> None:
        self._note("queued run started" if queued else "run started")

    def deadline_passed(self, run: Any) -> None:
        self._note("deadline passed")

    def run_stuck(self, run: Any, stack: str) -> None:
        self._note("run stuck")


def test_the_runners_timers_have_nobodys_context(run: Any, serving: Any, registry: Any) -> None:
    observer = ContextObserver()
    outlive = Outlive(registry=registry, observers=[observer], max_running=1)
    released = asyncio.Event()

    @outlive.task(timeout=1.0)
    async def ignore() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        async with serving(outlive):
            user.set("ann")
            ignore.submit()
            await asyncio.sleep(3)
            released.set()

    run(main())
    assert observer.seen == {"run started": ["ann"], "deadline passed": ["nobody"], "run stuck": ["nobody"]}


def test_a_waiting_run_is_not_started_in_the_context_of_the_run_that_made_room(
    run: Any, serving: Any, registry: Any
) -> None:
    observer = ContextObserver()
    outlive = Outlive(registry=registry, observers=[observer], max_running=1)

    @outlive.task(timeout=5.0)
    async def work() -> None:
        await asyncio.sleep(1)

    async def main() -> None:
        async with serving(outlive):
            user.set("ann")
            work.submit()
            user.set("bob")
            work.submit()

    run(main())
    # Its own or nobody's, but never another request's: loggers read context variables.
    assert observer.seen["queued run started"] in (["bob"], ["nobody"])


def test_a_stuck_scope_leaves_no_trace_in_the_runner(run: Any, serving: Any, registry: Any) -> None:
    current = []

    class Looker(Observer):
        def deadline_passed(self, run: Any) -> None:
            current.append(trace.get_current_span())

    provider = TracerProvider()
    outlive = Outlive(registry=registry, observers=[Looker()], tracer_provider=provider)
    released = asyncio.Event()

    @outlive.task(timeout=1.0)
    async def hang() -> None:
        await asyncio.sleep(100)

    async def flush() -> None:
        with provider.get_tracer("test").start_as_current_span("request"):
            async with outlive.scope("flush", timeout=1.0):
                with anyio.CancelScope(shield=True):
                    await released.wait()

    async def main() -> None:
        outlive._runner.open()
        flushing = asyncio.create_task(flush())
        await asyncio.sleep(5)
        assert outlive.counts.stuck == 1
        released.set()
        with pytest.raises(RunTimedOut):
            await flushing
        hang.submit()
        await asyncio.sleep(2)

    run(main())
    assert current == [trace.INVALID_SPAN, trace.INVALID_SPAN]
