"""Absorbed cancellations are counted exactly: those that would have killed the run without the shield."""

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from outlive import Outlive, Task

Absorbed = Callable[[], float | None]


@pytest.fixture
def absorbed(registry: Any) -> Absorbed:
    return lambda: registry.get_sample_value("outlive_absorbed_cancellations_total", {"task": "work"})


@pytest.fixture
def work(outlive: Outlive) -> Task[[], None]:
    @outlive.task(timeout=10.0)
    async def work() -> None:
        await asyncio.sleep(1)

    return work


def test_none_where_nobody_is_cancelled(
    run: Any, serving: Any, outlive: Outlive, work: Task[[], None], absorbed: Absorbed
) -> None:
    async def main() -> None:
        async with serving(outlive):
            await work()
            work.submit()

    run(main())
    assert absorbed() == 0


def test_one_for_each_waiter_that_is_hit(
    run: Any, serving: Any, outlive: Outlive, work: Task[[], None], absorbed: Absorbed
) -> None:
    async def main() -> None:
        async with serving(outlive):
            handle = work.submit()

            async def wait() -> None:
                await handle

            waiters = [asyncio.create_task(wait()) for _ in range(3)]
            await asyncio.sleep(0.5)
            for waiter in waiters[:2]:
                waiter.cancel()
            await asyncio.gather(*waiters, return_exceptions=True)

    run(main())
    assert absorbed() == 2


def test_one_for_a_scope_that_cancels_again_and_again(
    run: Any, serving: Any, outlive: Outlive, work: Task[[], None], absorbed: Absorbed
) -> None:
    async def main() -> None:
        async with serving(outlive):
            with anyio.move_on_after(0.5):
                try:
                    await work()
                finally:
                    with anyio.CancelScope(shield=True):
                        await asyncio.sleep(3)

    run(main())
    assert absorbed() == 1


def test_each_one_for_a_caller_that_waits_again(
    run: Any, serving: Any, outlive: Outlive, work: Task[[], None], absorbed: Absorbed
) -> None:
    async def main() -> None:
        async with serving(outlive):
            handle = work.submit()
            for _ in range(4):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await handle
            await handle

    run(main())
    assert absorbed() == 4


def test_none_after_the_end(
    run: Any, serving: Any, outlive: Outlive, work: Task[[], None], absorbed: Absorbed
) -> None:
    async def main() -> None:
        async with serving(outlive):
            handle = work.submit()
            await handle
            with anyio.CancelScope() as scope:
                scope.cancel()
                await handle

    run(main())
    assert absorbed() == 0


def test_none_when_the_run_itself_is_cancelled(
    run: Any, serving: Any, outlive: Outlive, work: Task[[], None], absorbed: Absorbed
) -> None:
    async def main() -> None:
        async with serving(outlive):
            handle = work.submit()
            waiter = asyncio.ensure_future(handle)
            await asyncio.sleep(0.5)
            handle.cancel()
            await asyncio.wait([waiter])
            assert not waiter.cancelled()
            assert waiter.exception() is not None

    run(main())
    assert absorbed() == 0


def test_a_cancellation_in_the_tick_of_the_end(
    run: Any, serving: Any, watched: Any, absorbed: Absorbed
) -> None:
    outlive: Outlive = watched()

    @outlive.task(timeout=10.0, name="work")
    async def wait_for(event: asyncio.Event) -> None:
        await event.wait()

    async def main() -> None:
        async with serving(outlive):
            event = asyncio.Event()
            caller = asyncio.create_task(wait_for(event))
            await asyncio.sleep(0.1)
            event.set()
            await asyncio.sleep(0)
            assert outlive.counts.running == 0
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller

    run(main())
    assert absorbed() == 0


def test_one_while_the_run_still_waits(run: Any, serving: Any, watched: Any, absorbed: Absorbed) -> None:
    outlive: Outlive = watched(max_running=1)

    @outlive.task(timeout=10.0)
    async def work() -> None:
        await asyncio.sleep(1)

    async def main() -> None:
        async with serving(outlive):
            work.submit()
            with anyio.move_on_after(0.5):
                await work()
            assert outlive.counts.pending == 1

    run(main())
    assert absorbed() == 1
