"""Runs may be submitted, cancelled and waited for from other threads: FastAPI runs sync endpoints in such."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from outlive import Observer, Outcome, Outlive, State

# Virtual time runs while a thread works, so only a deadline this far off is one that never comes.
NEVER = 1e9


def test_submit_from_a_worker_thread(run_anywhere: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=NEVER)
    async def work() -> int:
        return threading.get_ident()

    async def main() -> None:
        async with serving(outlive):
            handle = await asyncio.to_thread(work.submit)
            assert await handle == threading.get_ident()

    run_anywhere(main())
    assert outlive.counts.outcomes[Outcome.COMPLETED] == outlive.counts.submitted == 1


def test_many_threads_at_once(run_anywhere: Any, serving: Any, registry: Any) -> None:
    outlive = Outlive(registry=registry, max_running=10, max_pending=20)

    @outlive.task(timeout=NEVER)
    async def work() -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        async with serving(outlive):
            batches = await asyncio.gather(
                *(asyncio.to_thread(lambda: [work.submit() for _ in range(50)]) for _ in range(4))
            )
        outcomes = [handle.outcome for batch in batches for handle in batch]
        assert None not in outcomes
        assert len(outcomes) == outlive.counts.submitted == sum(outlive.counts.outcomes.values())

    run_anywhere(main())


def test_cancel_from_a_thread(run_anywhere: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=NEVER)
    async def hang() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with serving(outlive):
            handle = hang.submit()
            await asyncio.sleep(0)
            assert await asyncio.to_thread(handle.cancel)
            assert outlive.counts.outcomes[Outcome.CANCELLED] == 1
            assert not await asyncio.to_thread(handle.cancel)

    run_anywhere(main())


def test_submitted_and_cancelled_by_one_thread(run_anywhere: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=NEVER)
    async def hang() -> None:
        await asyncio.Event().wait()

    def submit_and_cancel() -> Any:
        handle = hang.submit()
        handle.cancel()
        return handle

    async def main() -> None:
        async with serving(outlive):
            handle = await asyncio.to_thread(submit_and_cancel)
            await asyncio.sleep(0)
            assert handle.outcome is Outcome.CANCELLED

    run_anywhere(main())


def test_cancelled_on_the_loop_before_the_loop_has_heard_of_it(
    run_anywhere: Any, serving: Any, outlive: Outlive
) -> None:
    handles: list[Any] = []

    @outlive.task(timeout=NEVER)
    async def hang() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with serving(outlive):
            thread = threading.Thread(target=lambda: handles.append(hang.submit()))
            thread.start()
            thread.join()
            handles[0].cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert handles[0].outcome is Outcome.CANCELLED
            counts = outlive.counts
            assert counts.submitted == counts.outcomes[Outcome.CANCELLED] == 1

    run_anywhere(main())


def test_submit_from_a_thread_while_draining(run_anywhere: Any, serving: Any, outlive: Outlive) -> None:
    handles: list[Any] = []

    @outlive.task(timeout=NEVER)
    async def save() -> None:
        await asyncio.sleep(0)

    @outlive.task(timeout=NEVER)
    async def hand_over() -> None:
        assert outlive.state is State.DRAINING
        # Not by `to_thread`: while it waited, virtual time would spend the drain's budget.
        thread = threading.Thread(target=lambda: handles.append(save.submit()))
        thread.start()
        thread.join()
        await handles[0]

    async def main() -> None:
        async with serving(outlive):
            outlive.begin_drain()
            hand_over.submit()
        assert [handle.outcome for handle in handles] == [Outcome.COMPLETED]

    run_anywhere(main())


def test_submit_from_a_thread_after_close(run_anywhere: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=NEVER)
    async def save() -> None:
        raise AssertionError

    async def main() -> None:
        async with serving(outlive):
            pass
        handle = await asyncio.to_thread(save.submit)
        assert handle.outcome is Outcome.REJECTED

    # Before the first start, after the lifespan, and after the loop's end.
    assert save.submit().outcome is Outcome.REJECTED
    run_anywhere(main())
    handles: list[Any] = []
    thread = threading.Thread(target=lambda: handles.append(save.submit()))
    thread.start()
    thread.join()
    assert handles[0].outcome is Outcome.REJECTED
    assert outlive.counts.outcomes[Outcome.REJECTED] == outlive.counts.submitted == 3


def test_submit_when_the_loop_went_away_without_a_drain(run_anywhere: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=NEVER)
    async def save() -> None:
        raise AssertionError

    async def main() -> None:
        outlive._runner.open()

    run_anywhere(main())
    assert outlive.state is State.OPEN
    assert save.submit().outcome is Outcome.REJECTED


def test_submit_from_a_thread_in_the_last_grace_of_a_drain_keeps_off_the_loop(
    run: Any, serving: Any, outlive: Outlive
) -> None:
    outcomes: list[Outcome | None] = []
    calls: list[int] = []

    @outlive.task(timeout=NEVER)
    async def save() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            # The runner is closed and waits for this one.
            assert outlive.state is State.CLOSED
            await asyncio.sleep(0)
            thread = threading.Thread(target=lambda: outcomes.append(save.submit().outcome))
            thread.start()
            thread.join()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon

        def noted(*args: Any, **kwargs: Any) -> asyncio.Handle:
            calls.append(threading.get_ident())
            return call_soon(*args, **kwargs)

        # In its debug mode, asyncio raises here, and the drain is never woken.
        loop.call_soon = noted  # type: ignore[method-assign, assignment]
        async with serving(outlive):
            save.submit()
            await asyncio.sleep(0)

    run(main())
    assert outcomes == [Outcome.REJECTED]
    assert set(calls) == {threading.get_ident()}


def test_a_rejection_in_a_thread_may_lead_to_another(registry: Any) -> None:
    class Alarm(Observer):
        asked = False

        def run_ended(self, run: Any, end: Any) -> None:
            if not self.asked:
                self.asked = True
                alert.submit()

    outlive = Outlive(registry=registry, observers=[Alarm()])

    @outlive.task(timeout=1.0)
    async def alert() -> None:
        raise AssertionError

    # In a thread of its own, since the failure of this test would be a deadlock.
    thread = threading.Thread(target=alert.submit, daemon=True)
    thread.start()
    thread.join(1)
    assert not thread.is_alive()
    assert outlive.counts.outcomes[Outcome.REJECTED] == 2


def test_a_waiter_on_another_event_loop(run: Any, new_loop: Any, serving: Any, outlive: Outlive) -> None:
    asked = threading.Event()

    @outlive.task(timeout=NEVER)
    async def answer() -> int:
        await asyncio.to_thread(asked.wait)
        return 42

    def wait(handle: Any) -> int:
        async def wait() -> int:
            asyncio.get_running_loop().call_soon(asked.set)
            return int(await handle)

        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(wait())

    async def main() -> None:
        async with serving(outlive):
            assert await asyncio.to_thread(wait, answer.submit()) == 42

    run(main())


def test_a_waiter_on_another_event_loop_comes_just_when_the_run_ends(
    run: Any, new_loop: Any, serving: Any, outlive: Outlive
) -> None:
    looked, ended = threading.Event(), threading.Event()

    @outlive.task(timeout=NEVER)
    async def answer() -> int:
        await asyncio.to_thread(looked.wait)
        return 42

    def slow(create_future: Callable[[], Any]) -> Callable[[], Any]:
        def create() -> Any:
            # The waiter has seen that there is no outcome yet; before it goes on, there is one.
            looked.set()
            ended.wait()
            return create_future()

        return create

    def wait(handle: Any) -> Any:
        async def wait() -> Any:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(5):
                loop.create_future = slow(loop.create_future)  # type: ignore[method-assign]
                return await handle

        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(wait())

    async def main() -> None:
        async with serving(outlive):
            handle = answer.submit()
            waiter = asyncio.create_task(asyncio.to_thread(wait, handle))
            await handle
            ended.set()
            assert await waiter == 42

    run(main())


def test_a_waiter_whose_own_loop_has_gone_disturbs_nobody(
    run: Any, new_loop: Any, serving: Any, outlive: Outlive
) -> None:
    @outlive.task(timeout=NEVER)
    async def answer(event: asyncio.Event) -> int:
        await event.wait()
        return 42

    def give_up(handle: Any) -> None:
        async def wait() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await handle

        loop = new_loop()
        loop.run_until_complete(wait())
        handle._waiters.append(loop.create_future())
        loop.close()

    async def main() -> None:
        event = asyncio.Event()
        async with serving(outlive):
            handle = answer.submit(event)
            await asyncio.to_thread(give_up, handle)
            event.set()
            assert await handle == 42

    run(main())
