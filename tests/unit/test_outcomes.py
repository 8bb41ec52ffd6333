"""Promise 2: every run gets exactly one outcome, whatever the work, its observers or the event loop do."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from outlive import Observer, Outcome, Outlive, Rejection, RunCancelled, RunRejected, RunTimedOut
from outlive.observer import EVENTS


def only(outlive: Outlive, outcome: Outcome, runs: int = 1) -> bool:
    counts = outlive.counts
    return (
        counts.outcomes == {**dict.fromkeys(Outcome, 0), outcome: runs}
        and counts.submitted == runs
        and counts.running == counts.pending == 0
    )


def test_completed(run: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=5.0)
    async def add(a: int, *, b: int) -> int:
        await asyncio.sleep(1)
        return a + b

    async def main() -> None:
        async with serving(outlive):
            handle = add.submit(1, b=2)
            assert handle.name == "add"
            assert handle.outcome is None
            assert await handle == 3
            assert await handle == 3
            assert handle.outcome is Outcome.COMPLETED

    run(main())
    assert only(outlive, Outcome.COMPLETED)


def test_timed_out(run: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=5.0)
    async def hang() -> None:
        await asyncio.sleep(100)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving(outlive):
            started = loop.time()
            with pytest.raises(RunTimedOut, match="task 'hang': timed out after 5 s") as caught:
                await hang()
            assert isinstance(caught.value, TimeoutError)
            assert loop.time() == pytest.approx(started + 5)

    run(main())
    assert only(outlive, Outcome.TIMED_OUT)


def test_cancelled(run: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=5.0)
    async def hang() -> None:
        await asyncio.sleep(100)

    async def main() -> None:
        async with serving(outlive):
            handle = hang.submit()
            await asyncio.sleep(1)
            assert handle.cancel()
            with pytest.raises(RunCancelled, match="task 'hang': cancelled"):
                await handle
            assert not handle.cancel()

    run(main())
    assert only(outlive, Outcome.CANCELLED)


def test_rejected(run: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=5.0)
    async def save() -> None:
        raise AssertionError

    async def main() -> None:
        handle = save.submit()
        assert handle.outcome is Outcome.REJECTED
        assert not handle.cancel()
        with pytest.raises(RunRejected, match=r"task 'save': rejected \(closed\)") as caught:
            await handle
        assert caught.value.reason is Rejection.CLOSED

    run(main())
    assert only(outlive, Outcome.REJECTED)


class Oddity(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, TimeoutError, SystemExit, GeneratorExit, Oddity])
def test_failed(run: Any, serving: Any, outlive: Outlive, error: type[BaseException]) -> None:
    @outlive.task(timeout=5.0)
    async def fail() -> None:
        await asyncio.sleep(1)
        raise error

    async def main() -> None:
        async with serving(outlive):
            with pytest.raises(error):
                await fail()

    run(main())
    assert only(outlive, Outcome.FAILED)


@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit, Oddity])
def test_failed_in_its_first_step(
    run: Any, serving: Any, outlive: Outlive, error: type[BaseException]
) -> None:
    @outlive.task(timeout=5.0)
    async def fail() -> None:
        raise error

    async def main() -> None:
        async with serving(outlive):
            fail.submit()

    run(main())
    assert only(outlive, Outcome.FAILED)


def test_a_keyboard_interrupt_ends_the_run_and_still_stops_the_loop(new_loop: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=5.0)
    async def interrupted() -> None:
        await asyncio.sleep(1)
        raise KeyboardInterrupt

    async def main() -> None:
        outlive._runner.open()
        with pytest.raises(KeyboardInterrupt):
            await interrupted()
        await asyncio.sleep(100)

    with asyncio.Runner(loop_factory=new_loop) as runner, pytest.raises(KeyboardInterrupt):
        runner.run(main())
    assert only(outlive, Outcome.FAILED)


def test_a_cancellation_that_the_work_raises_itself(run: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=5.0)
    async def give_up() -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        async with serving(outlive):
            with pytest.raises(RunCancelled):
                await give_up()

    run(main())
    assert only(outlive, Outcome.CANCELLED)


def test_a_timeout_inside_the_work_is_its_failure(run: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=5.0)
    async def call_partner() -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(100)

    async def main() -> None:
        async with serving(outlive):
            with pytest.raises(TimeoutError) as caught:
                await call_partner()
            assert not isinstance(caught.value, RunTimedOut)

    run(main())
    assert only(outlive, Outcome.FAILED)


@pytest.mark.parametrize("how", ["return", "raise"])
def test_work_that_swallows_its_cancellation_is_not_completed(
    run: Any, serving: Any, outlive: Outlive, how: str
) -> None:
    @outlive.task(timeout=5.0)
    async def swallow() -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)
            if how == "raise":
                raise ZeroDivisionError from None
        return "half"

    async def main() -> None:
        async with serving(outlive):
            with pytest.raises(RunTimedOut):
                await swallow()

    run(main())
    assert only(outlive, Outcome.TIMED_OUT)


def test_cancelled_before_its_first_step(run: Any, serving: Any, outlive: Outlive) -> None:
    steps = []

    @outlive.task(timeout=5.0)
    async def save() -> None:
        steps.append("first")
        await asyncio.sleep(1)
        steps.append("second")

    async def main() -> None:
        async with serving(outlive):
            handle = save.submit()
            assert handle.cancel()
            with pytest.raises(RunCancelled):
                await handle

    run(main())
    assert "second" not in steps
    assert only(outlive, Outcome.CANCELLED)


def test_cancelled_by_a_stranger_before_its_first_step(
    run: Any, serving: Any, outlive: Outlive, registry: CollectorRegistry
) -> None:
    @outlive.task(timeout=5.0)
    async def save() -> None:
        await asyncio.sleep(1)

    async def main() -> None:
        async with serving(outlive):
            handle = save.submit()
            # As asyncio.Runner does with all tasks at its end, or a debugging tool with one.
            (work,) = (task for task in asyncio.all_tasks() if task.get_name() == "save")
            work.cancel()
            with pytest.raises(RunCancelled):
                await handle
            running = registry.get_sample_value("outlive_runs_running", {"task": "save"})
            assert running == outlive.counts.running == 0

    run(main())
    assert only(outlive, Outcome.CANCELLED)


def test_cancelled_twice(run: Any, serving: Any, watched: Any, recorder: Any) -> None:
    outlive: Outlive = watched()
    cancellations = []

    @outlive.task(timeout=5.0)
    async def clean_up_when_cancelled() -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            cancellations.append(1)
            await asyncio.sleep(0.5)
            raise

    async def main() -> None:
        async with serving(outlive):
            handle = clean_up_when_cancelled.submit()
            await asyncio.sleep(1)
            handle.cancel()
            await asyncio.sleep(0.1)
            handle.cancel()
            with pytest.raises(RunCancelled):
                await handle

    run(main())
    assert cancellations == [1]
    assert only(outlive, Outcome.CANCELLED)
    assert len(recorder.of("run_ended")) == 1


def test_cancelled_while_pending(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=1)
    started = []

    @outlive.task(timeout=5.0)
    async def work(name: str) -> None:
        started.append(name)
        await asyncio.sleep(1)

    async def main() -> None:
        async with serving(outlive):
            work.submit("first")
            pending = work.submit("second")
            assert outlive.counts.pending == 1
            assert pending.cancel()
            assert pending.outcome is Outcome.CANCELLED
            assert outlive.counts.pending == 0
            assert not pending.cancel()
            with pytest.raises(RunCancelled):
                await pending

    run(main())
    assert started == ["first"]


def test_a_run_that_waited_cancels_itself_in_its_first_step(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=1)

    @outlive.task(timeout=5.0)
    async def hold() -> None:
        await asyncio.sleep(1)

    handles: list[Any] = []
    told: list[bool] = []

    @outlive.task(timeout=5.0)
    async def cancel_me() -> None:
        told.append(handles[0].cancel())
        await asyncio.sleep(100)

    async def main() -> None:
        async with serving(outlive):
            hold.submit()
            handles.append(cancel_me.submit())
            await asyncio.sleep(1.5)
            # An eager task factory takes the first step before the runner has got the task.
            assert handles[0].outcome is Outcome.CANCELLED
            assert told == [True]

    run(main())


def test_a_deadline_and_a_completion_in_the_same_tick(
    run: Any, serving: Any, watched: Any, recorder: Any
) -> None:
    outlive: Outlive = watched()

    @outlive.task(timeout=5.0)
    async def just_in_time(seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def main() -> None:
        async with serving(outlive):
            for seconds in (5.0, 5.0 - 1e-12, 5.0 + 1e-12):
                just_in_time.submit(seconds)
            await asyncio.sleep(10)

    run(main())
    ended = recorder.of("run_ended")
    assert len(ended) == len({details for _, details, _ in ended}) == 3
    counts = outlive.counts
    assert counts.outcomes[Outcome.COMPLETED] + counts.outcomes[Outcome.TIMED_OUT] == 3


def test_a_cancellation_and_a_completion_in_the_same_tick(run: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=5.0)
    async def wait_for(event: asyncio.Event) -> None:
        await event.wait()

    async def main() -> None:
        event = asyncio.Event()
        async with serving(outlive):
            handle = wait_for.submit(event)
            await asyncio.sleep(1)
            event.set()
            handle.cancel()
            with pytest.raises(RunCancelled):
                await handle

    run(main())
    assert only(outlive, Outcome.CANCELLED)


def raising_observer(event: str, error: type[BaseException]) -> Observer:
    def listen(self: Observer, *details: object) -> None:
        raise error

    observer: Observer = type("Raising", (Observer,), {event: listen})()
    return observer


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, SystemExit])
@pytest.mark.parametrize(
    "event", [event for event in EVENTS if not event.startswith(("conn", "disc", "flow"))]
)
def test_an_observer_that_raises_disturbs_nothing(
    run: Any,
    serving: Any,
    registry: Any,
    event: str,
    error: type[BaseException],
    caplog: pytest.LogCaptureFixture,
) -> None:
    outlive = Outlive(registry=registry, max_running=1, observers=[raising_observer(event, error)])

    @outlive.task(timeout=1.0, max_wait=100.0)
    async def work(seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            await asyncio.sleep(3)

    async def main() -> None:
        async with serving(outlive):
            caller = asyncio.create_task(work(0.5))
            stuck = work.submit(100)
            last = work.submit(0.5)
            await asyncio.sleep(0.1)
            caller.cancel()
            await last
            assert stuck.outcome is Outcome.TIMED_OUT
            await asyncio.sleep(5)

    run(main())
    assert outlive.counts.outcomes == {
        **dict.fromkeys(Outcome, 0),
        Outcome.COMPLETED: 2,
        Outcome.TIMED_OUT: 1,
    }
    assert outlive.counts.stuck == 0
    assert registry.get_sample_value("outlive_runs_total", {"task": "work", "outcome": "completed"}) == 2
    told = [record for record in caplog.records if "observer Raising raised" in record.message]
    assert len(told) == 1
    assert event in told[0].message


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
def test_a_task_factory_that_raises(
    run: Any, serving: Any, outlive: Outlive, error: type[BaseException]
) -> None:
    @outlive.task(timeout=1.0)
    async def save() -> None:
        raise AssertionError

    def refuse(*args: object, **kwargs: object) -> Any:
        raise error

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving(outlive):
            usual = loop.get_task_factory()
            loop.set_task_factory(refuse)
            try:
                handle = save.submit()
            finally:
                loop.set_task_factory(usual)
            await asyncio.sleep(5)
            assert handle.outcome in (Outcome.FAILED, Outcome.CANCELLED)
            assert outlive.counts.running == 0

    run(main())


@pytest.mark.parametrize("arguments", [{}, {"line": 1, "more": 2}, {"line": 1, "self": 2}])
def test_wrong_arguments_fail_the_run_and_not_the_caller(
    run: Any, serving: Any, outlive: Outlive, arguments: dict[str, Any]
) -> None:
    @outlive.task(timeout=1.0)
    async def save(line: int) -> None:
        raise AssertionError

    submit: Callable[..., Any] = save.submit

    async def main() -> None:
        async with serving(outlive):
            with pytest.raises(TypeError, match="argument"):
                await submit(**arguments)

    run(main())
    assert only(outlive, Outcome.FAILED)


def test_several_waiters_and_one_of_them_is_cancelled(run: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=5.0)
    async def answer() -> int:
        await asyncio.sleep(1)
        return 42

    async def main() -> None:
        async with serving(outlive):
            handle = answer.submit()

            async def wait() -> int:
                return await handle

            waiters = [asyncio.create_task(wait()) for _ in range(3)]
            await asyncio.sleep(0.5)
            waiters[1].cancel()
            ended = await asyncio.gather(*waiters, return_exceptions=True)
            assert ended[0] == ended[2] == 42
            assert isinstance(ended[1], asyncio.CancelledError)
            assert handle._waiters == []

    run(main())


def test_those_who_gave_up_waiting_are_not_collected(run: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=500.0)
    async def long() -> None:
        await asyncio.sleep(200)

    async def main() -> None:
        async with serving(outlive):
            handle = long.submit()
            for _ in range(100):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(handle, 1)
            assert handle._waiters == []
            handle.cancel()

    run(main())


def test_the_sum_holds_whenever_an_observer_looks(run: Any, serving: Any, registry: Any) -> None:
    wrong: list[str] = []

    def looking(event: str) -> Callable[..., None]:
        def look(self: Observer, *details: object) -> None:
            counts = outlive.counts
            if counts.submitted != sum(counts.outcomes.values()) + counts.running + counts.pending:
                wrong.append(event)

        return look

    events = [event for event in EVENTS if event not in ("task_declared", "opened")]
    looker = type("Looker", (Observer,), {event: looking(event) for event in events})()
    outlive = Outlive(registry=registry, observers=[looker], max_running=1, max_pending=1)

    @outlive.task(timeout=2.0)
    async def work() -> None:
        await asyncio.sleep(1)

    async def main() -> None:
        async with serving(outlive):
            assert [work.submit().outcome for _ in range(3)] == [None, None, Outcome.REJECTED]

    run(main())
    assert wrong == []


@pytest.mark.parametrize("ends", ["completes", "fails", "times out"])
def test_a_run_that_nobody_holds_is_gone_without_the_garbage_collector(
    run: Any, serving: Any, outlive: Outlive, ends: str
) -> None:
    @outlive.task(timeout=1.0)
    async def work() -> None:
        if ends == "fails":
            # Not in the first step: with an eager task factory, the traceback would hold the frames of whoever submits.
            await asyncio.sleep(0)
            raise ValueError
        await asyncio.sleep(5.0 if ends == "times out" else 0.0)

    async def main() -> None:
        async with serving(outlive):
            gc.collect()
            gc.disable()
            try:
                gone = weakref.ref(work.submit())
                await asyncio.sleep(10.0)
                assert gone() is None
            finally:
                gc.enable()

    run(main())
