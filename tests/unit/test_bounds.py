"""Promise 3: nothing is unbounded."""

import asyncio
import gc
import weakref
from typing import Any

import pytest

from outlive import DeclarationError, Outcome, Outlive, Rejection, RunRejected, RunTimedOut


def test_max_running_and_max_pending_hold_for_many_submits_in_one_step(
    run: Any, serving: Any, watched: Any
) -> None:
    outlive: Outlive = watched(max_running=3, max_pending=5)
    executing = most = 0

    @outlive.task(timeout=10.0)
    async def work() -> None:
        nonlocal executing, most
        executing += 1
        most = max(most, executing)
        await asyncio.sleep(1)
        executing -= 1

    async def main() -> None:
        async with serving(outlive):
            handles = [work.submit() for _ in range(50)]
            assert [handle.outcome for handle in handles] == [None] * 8 + [Outcome.REJECTED] * 42
            assert (outlive.counts.running, outlive.counts.pending) == (3, 5)
            with pytest.raises(RunRejected) as caught:
                await handles[-1]
            assert caught.value.reason is Rejection.FULL

    run(main())
    assert most == 3
    assert outlive.counts.outcomes[Outcome.COMPLETED] == 8


def test_a_tasks_own_limits(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched()

    @outlive.task(timeout=10.0, max_running=2, max_pending=1)
    async def narrow() -> None:
        await asyncio.sleep(1)

    async def main() -> None:
        async with serving(outlive):
            handles = [narrow.submit() for _ in range(5)]
            assert (outlive.counts.running, outlive.counts.pending) == (2, 1)
            with pytest.raises(RunRejected) as caught:
                await handles[-1]
            assert caught.value.reason is Rejection.TASK_FULL

    run(main())
    assert outlive.counts.outcomes[Outcome.COMPLETED] == 3


def test_none_may_wait(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=1, max_pending=0)

    @outlive.task(timeout=10.0)
    async def work() -> None:
        await asyncio.sleep(1)

    async def main() -> None:
        async with serving(outlive):
            assert work.submit().outcome is None
            assert work.submit().outcome is Outcome.REJECTED
            await asyncio.sleep(2)
            assert work.submit().outcome is None

    run(main())


@pytest.mark.parametrize("limit", ["max_running", "max_pending"])
def test_no_setting_makes_it_unbounded(watched: Any, limit: str) -> None:
    for unbounded in (None, float("inf"), -1, True, 1.5):
        with pytest.raises(DeclarationError, match=limit):
            watched(**{limit: unbounded})


def test_waiting_runs_start_in_order_over_all_tasks(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=1)
    started = []

    async def work(number: int) -> None:
        started.append(number)
        await asyncio.sleep(0.1)

    tasks = [outlive.task(timeout=10.0, name=name)(work) for name in "abc"]

    async def main() -> None:
        async with serving(outlive):
            for number in range(30):
                tasks[number % 3 if number < 15 else 0].submit(number)

    run(main())
    assert started == list(range(30))


def test_a_full_task_blocks_no_other(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=2)
    started = []

    async def work(name: str) -> None:
        started.append(name)
        await asyncio.sleep(2 if name == "wide 1" else 1)

    narrow = outlive.task(timeout=10.0, name="narrow", max_running=1)(work)
    wide = outlive.task(timeout=10.0, name="wide")(work)

    async def main() -> None:
        async with serving(outlive):
            narrow.submit("narrow 1")
            narrow.submit("narrow 2")
            wide.submit("wide 1")
            wide.submit("wide 2")
            await asyncio.sleep(0)
            assert started == ["narrow 1", "wide 1"]
            await asyncio.sleep(1.5)
            assert started == ["narrow 1", "wide 1", "narrow 2"]
            await asyncio.sleep(1)
            assert started == ["narrow 1", "wide 1", "narrow 2", "wide 2"]

    run(main())


def test_max_wait(run: Any, serving: Any, watched: Any, recorder: Any) -> None:
    outlive: Outlive = watched(max_running=1)

    @outlive.task(timeout=10.0, max_wait=2.0)
    async def work() -> None:
        await asyncio.sleep(5)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving(outlive):
            work.submit()
            submitted = loop.time()
            with pytest.raises(RunTimedOut, match="no slot within 2 s"):
                await work()
            assert loop.time() == pytest.approx(submitted + 2)
            assert outlive.counts.pending == 0

    run(main())
    (_, _, end), _ = recorder.of("run_ended")
    assert (end.outcome, end.duration) == (Outcome.TIMED_OUT, None)
    assert end.wait == pytest.approx(2)


def test_max_wait_is_the_timeout_unless_set(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=1)

    @outlive.task(timeout=100.0)
    async def hold() -> None:
        await asyncio.sleep(10)

    @outlive.task(timeout=3.0)
    async def work() -> None:
        raise AssertionError

    async def main() -> None:
        async with serving(outlive):
            hold.submit()
            with pytest.raises(RunTimedOut, match="no slot within 3 s"):
                await work()

    run(main())


def test_the_wait_takes_nothing_off_the_timeout(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=1)

    @outlive.task(timeout=3.0)
    async def work() -> None:
        await asyncio.sleep(2)

    async def main() -> None:
        async with serving(outlive):
            work.submit()
            await work()

    run(main())
    assert outlive.counts.outcomes[Outcome.COMPLETED] == 2


@pytest.mark.parametrize("how", ["cancelled", "timed out", "rejected"])
def test_a_run_that_never_started_leaves_no_trace(run: Any, serving: Any, watched: Any, how: str) -> None:
    outlive: Outlive = watched(max_running=1, max_pending=1)

    class Payload:
        pass

    @outlive.task(timeout=50.0, max_wait=1.0)
    async def work(payload: Payload | None) -> None:
        await asyncio.sleep(10)

    async def main() -> None:
        async with serving(outlive):
            work.submit(None)
            if how == "rejected":
                work.submit(None)
            payload = Payload()
            trace = weakref.ref(payload)
            handle = work.submit(payload)
            del payload
            if how == "cancelled":
                handle.cancel()
            await asyncio.sleep(2)
            assert handle.outcome is not None
            kept = weakref.ref(handle)
            gc.collect()
            assert trace() is None
            del handle
            outlive._observer._observers[0].heard.clear()  # type: ignore[attr-defined]
            gc.collect()
            assert kept() is None
            assert not work.waiting
            assert not outlive._runner._waiting

    run(main())


def test_a_waiting_run_may_leave_from_the_middle(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=1)
    started = []

    @outlive.task(timeout=100.0)
    async def work(number: int) -> None:
        started.append(number)
        await asyncio.sleep(1)

    async def main() -> None:
        async with serving(outlive):
            handles = [work.submit(number) for number in range(6)]
            handles[3].cancel()
            handles[5].cancel()
            assert outlive.counts.pending == 3

    run(main())
    assert started == [0, 1, 2, 4]


@pytest.mark.parametrize("own_limit", [None, 2])
def test_stuck_runs_are_at_most_as_many_as_slots(
    run: Any, serving: Any, watched: Any, own_limit: int | None
) -> None:
    outlive: Outlive = watched(max_running=2 if own_limit is None else 100, cancel_grace=1.0)
    released = asyncio.Event()
    started = 0

    @outlive.task(timeout=1.0, max_wait=20.0, max_running=own_limit)
    async def never_end() -> None:
        nonlocal started
        started += 1
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        async with serving(outlive):
            handles = [never_end.submit() for _ in range(10)]
            await asyncio.sleep(10)
            assert (started, outlive.counts.stuck, outlive.counts.running) == (4, 4, 0)
            await asyncio.sleep(15)
            assert outlive.counts.pending == 0
            assert {handle.outcome for handle in handles} == {Outcome.TIMED_OUT}
            released.set()
            await asyncio.sleep(0.1)
            assert outlive.counts.stuck == 0
            await never_end()

    run(main())
    assert started == 5
