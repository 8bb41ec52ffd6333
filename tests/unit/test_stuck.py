"""Promise 4: a run that doesn't end when it is cancelled is told, and holds up nothing."""

import asyncio
from typing import Any

import anyio
import pytest

from outlive import Outcome, Outlive, RunCancelled, RunTimedOut


class Stubborn:
    """Work that ignores its cancellation until it is released."""

    def __init__(self, outlive: Outlive, timeout: float = 5.0) -> None:
        self.released = asyncio.Event()
        self.ignore = outlive.task(timeout=timeout, name="ignore")(self._ignore)

    async def _ignore(self) -> str:
        await self._hang_here()
        return "after all"

    async def _hang_here(self) -> None:
        while not self.released.is_set():
            try:
                await self.released.wait()  # this is the line that hangs
            except asyncio.CancelledError:
                continue


def test_it_is_told_with_the_function_and_the_line_where_it_hangs(
    run: Any, serving: Any, watched: Any, recorder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    outlive: Outlive = watched(cancel_grace=2.0)
    stubborn = Stubborn(outlive)

    async def main() -> None:
        async with serving(outlive):
            handle = stubborn.ignore.submit()
            await asyncio.sleep(6.9)
            assert handle.outcome is None
            assert recorder.of("run_stuck") == []
            await asyncio.sleep(0.2)
            assert handle.outcome is Outcome.TIMED_OUT
            stubborn.released.set()

    run(main())
    [(_, details, stack)] = recorder.of("run_stuck")
    assert details.task.name == "ignore"
    assert "in _ignore" in stack
    assert "in _hang_here" in stack
    assert "this is the line that hangs" in stack
    [record] = [record for record in caplog.records if record.message.startswith("run stuck")]
    assert record.levelname == "ERROR"
    assert "ignore" in record.message
    assert "this is the line that hangs" in vars(record)["stack"]


def test_the_stack_names_where_the_block_of_a_scope_hangs(
    run: Any, serving: Any, watched: Any, recorder: Any
) -> None:
    outlive: Outlive = watched()
    released = asyncio.Event()

    async def hang_in_a_block() -> None:
        async with outlive.scope("flush", timeout=1.0):
            with anyio.CancelScope(shield=True):
                await released.wait()

    async def main() -> None:
        async with serving(outlive):
            handler = asyncio.create_task(hang_in_a_block())
            await asyncio.sleep(5)
            released.set()
            with pytest.raises(RunTimedOut):
                await handler

    run(main())
    [(_, details, stack)] = recorder.of("run_stuck")
    assert details.task.name == "flush"
    assert "in hang_in_a_block" in stack


def test_its_waiters_are_released(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(cancel_grace=2.0)
    stubborn = Stubborn(outlive)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving(outlive):
            started = loop.time()
            with pytest.raises(RunTimedOut):
                await stubborn.ignore()
            assert loop.time() == pytest.approx(started + 7)
            stubborn.released.set()

    run(main())


def test_its_slot_is_given_back(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=1, cancel_grace=1.0)
    stubborn = Stubborn(outlive)

    @outlive.task(timeout=5.0, max_wait=60.0)
    async def work() -> float:
        return asyncio.get_running_loop().time()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving(outlive):
            started = loop.time()
            stubborn.ignore.submit()
            assert await work() == pytest.approx(started + 6)
            assert outlive.counts.stuck == 1
            stubborn.released.set()

    run(main())


def test_its_end_lets_a_run_start_that_waits(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=1, cancel_grace=1.0)
    stubborn = Stubborn(outlive, timeout=1.0)

    @outlive.task(timeout=5.0, max_wait=60.0)
    async def work() -> float:
        return asyncio.get_running_loop().time()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving(outlive):
            for _ in range(2):
                stubborn.ignore.submit()
                await asyncio.sleep(3)
            assert outlive.counts.stuck == 2
            waiting = work.submit()
            await asyncio.sleep(10)
            assert outlive.counts.pending == 1
            released = loop.time()
            stubborn.released.set()
            assert await waiting == pytest.approx(released)

    run(main())


def test_the_gauge_goes_back_when_it_ends_after_all(
    run: Any, serving: Any, watched: Any, recorder: Any, registry: Any
) -> None:
    outlive: Outlive = watched(cancel_grace=1.0)
    stubborn = Stubborn(outlive)

    def gauge(name: str) -> float | None:
        value: float | None = registry.get_sample_value(f"outlive_runs_{name}", {"task": "ignore"})
        return value

    async def main() -> None:
        async with serving(outlive):
            handle = stubborn.ignore.submit()
            await asyncio.sleep(1)
            assert (gauge("running"), gauge("stuck"), outlive.counts.stuck) == (1, 0, 0)
            handle.cancel()
            await asyncio.sleep(2)
            assert (gauge("running"), gauge("stuck"), outlive.counts.stuck) == (0, 1, 1)
            stubborn.released.set()
            await asyncio.sleep(0.1)
            assert (gauge("running"), gauge("stuck"), outlive.counts.stuck) == (0, 0, 0)
            with pytest.raises(RunCancelled):
                await handle

    run(main())
    assert len(recorder.of("run_unstuck")) == 1
    assert len(recorder.of("run_ended")) == 1
    assert outlive.counts.outcomes[Outcome.CANCELLED] == 1


def test_a_clean_up_within_the_grace_is_not_stuck(
    run: Any, serving: Any, watched: Any, recorder: Any
) -> None:
    outlive: Outlive = watched(cancel_grace=1.0)

    @outlive.task(timeout=5.0)
    async def clean_up() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(0.9)

    async def main() -> None:
        async with serving(outlive):
            with pytest.raises(RunTimedOut):
                await clean_up()

    run(main())
    assert recorder.of("run_stuck") == []


def test_the_next_lifespan_knows_nothing_of_it(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(cancel_grace=1.0)
    stubborn = Stubborn(outlive)

    async def main() -> None:
        async with serving(outlive) as app:
            stubborn.ignore.submit()
        assert outlive.counts.stuck == 1
        async with serving(outlive, app):
            assert outlive.counts.stuck == 0
            stubborn.released.set()
            await asyncio.sleep(1)
            assert (outlive.counts.stuck, outlive.counts.running) == (0, 0)

    run(main())


def test_a_run_that_ends_as_soon_as_it_can_is_not_stuck_because_the_event_loop_was_held_up(
    run: Any, serving: Any, watched: Any, recorder: Any
) -> None:
    outlive: Outlive = watched(cancel_grace=1.0)

    @outlive.task(timeout=5.0)
    async def cleans_up() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            # Somebody else's code, longer than the grace; and then what a client library's clean-up needs.
            asyncio.get_running_loop()._jumping.now += 3.0  # type: ignore[attr-defined]
            for _ in range(10):
                await asyncio.sleep(0)

    async def main() -> None:
        async with serving(outlive):
            handle = cleans_up.submit()
            with pytest.raises(RunTimedOut):
                await handle

    run(main())
    assert recorder.of("run_stuck") == []
    assert outlive.counts.stuck == 0
