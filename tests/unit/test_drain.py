"""Promise 5: a stop is a drain, in order and inside one budget."""

import asyncio
import contextlib
import logging
from typing import Any

import anyio
import pytest
from fastapi import FastAPI

from outlive import Outcome, Outlive, Rejection, State


def test_runs_finish_before_the_lifespan_ends(run: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=10.0)
    async def save() -> None:
        await asyncio.sleep(5)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving(outlive):
            handle = save.submit()
            stopped = loop.time()
        assert handle.outcome is Outcome.COMPLETED
        assert loop.time() == pytest.approx(stopped + 5)
        assert outlive.state is State.CLOSED

    run(main())


def test_an_idle_process_stops_at_once(run: Any, serving: Any, outlive: Outlive) -> None:
    async def main() -> None:
        async with serving(outlive):
            stopped = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() == stopped

    run(main())


def test_its_order(run: Any, serving: Any, wire: Any, watched: Any, recorder: Any) -> None:
    outlive: Outlive = watched(drain_timeout=20.0, cancel_grace=1.0)
    order: list[str] = []
    never = asyncio.Event()

    @outlive.task(timeout=100.0)
    async def finish() -> None:
        await asyncio.sleep(5)
        order.append(f"finished while {outlive.state}")

    @outlive.task(timeout=100.0)
    async def too_long() -> None:
        try:
            await asyncio.sleep(99)
        finally:
            order.append(f"cancelled while {outlive.state}")

    @outlive.task(timeout=100.0)
    async def stubborn() -> None:
        while not never.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await never.wait()

    @contextlib.asynccontextmanager
    async def resources(_app: FastAPI) -> Any:
        yield
        order.append(f"resources closed while {outlive.state}")

    app = FastAPI(lifespan=resources)
    outlive.install(app)

    @app.get("/slow")
    async def slow() -> None:
        await asyncio.sleep(3)
        order.append(f"handler returned while {outlive.state}")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving(outlive, app):
            request = wire(app, "http", "/slow").handler
            for task in (finish, too_long, stubborn):
                task.submit()
            await asyncio.sleep(0)
            stopped = loop.time()
        await request
        assert loop.time() <= stopped + 20
        assert loop.time() == pytest.approx(stopped + 19)
        never.set()
        await asyncio.sleep(0.1)

    run(main())
    assert order == [
        "handler returned while draining",
        "finished while draining",
        "cancelled while closed",
        "resources closed while closed",
    ]
    [(_, duration, cancelled, stuck)] = recorder.of("drain_ended")
    assert (duration, cancelled, stuck) == (pytest.approx(19), 2, ["stubborn"])
    drain = [event for event, *_ in recorder.heard if event in ("drain_started", "drain_ended", "closed")]
    assert drain == ["drain_started", "drain_ended", "closed"]


def test_the_stuck_are_logged_by_name(
    run: Any, serving: Any, watched: Any, caplog: pytest.LogCaptureFixture
) -> None:
    outlive: Outlive = watched(drain_timeout=5.0)
    never = asyncio.Event()

    async def ignore() -> None:
        while not never.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await never.wait()

    tasks = [outlive.task(timeout=4.0, name=name)(ignore) for name in ("b", "a")]

    async def main() -> None:
        async with serving(outlive):
            for task in tasks:
                task.submit()
        never.set()
        await asyncio.sleep(0)

    run(main())
    [record] = [record for record in caplog.records if record.message == "drain ended"]
    assert record.levelno == logging.WARNING
    assert vars(record)["stuck_runs"] == ["a", "b"]


def test_a_handlers_finally_submits_while_draining(
    run: Any, serving: Any, wire: Any, outlive: Outlive
) -> None:
    saved = []

    @outlive.task(timeout=10.0)
    async def save() -> None:
        await asyncio.sleep(1)
        saved.append(outlive.state)

    app = FastAPI()
    outlive.install(app)

    @app.get("/slow")
    async def slow() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            assert outlive.state is State.DRAINING
            save.submit()

    async def main() -> None:
        async with serving(outlive, app):
            request = wire(app, "http", "/slow").handler
            await asyncio.sleep(1)
            # As uvicorn does it: the handler is cancelled and the lifespan's shutdown begins in the same moment.
            request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert saved == [State.DRAINING]

    run(main())


def test_it_is_over_only_when_no_handler_is_left_and_nothing_runs(
    run: Any, serving: Any, outlive: Outlive
) -> None:
    chain = []

    @outlive.task(timeout=10.0)
    async def link(left: int) -> None:
        await asyncio.sleep(1)
        chain.append(left)
        if left:
            link.submit(left - 1)

    async def main() -> None:
        async with serving(outlive):
            link.submit(5)
        assert chain == [5, 4, 3, 2, 1, 0]

    run(main())
    assert outlive.counts.outcomes[Outcome.REJECTED] == 0


def test_waiting_runs_still_start(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=1)

    @outlive.task(timeout=10.0)
    async def work() -> None:
        await asyncio.sleep(1)

    async def main() -> None:
        async with serving(outlive):
            for _ in range(5):
                work.submit()

    run(main())
    assert outlive.counts.outcomes[Outcome.COMPLETED] == 5


def test_runs_that_still_wait_at_its_deadline_are_cancelled(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=1, drain_timeout=5.0)
    started = []

    @outlive.task(timeout=100.0)
    async def work(number: int) -> None:
        started.append(number)
        await asyncio.sleep(50)

    async def main() -> None:
        async with serving(outlive):
            handles = [work.submit(number) for number in range(4)]
        assert [handle.outcome for handle in handles] == [Outcome.CANCELLED] * 4

    run(main())
    assert started == [0]
    assert (outlive.counts.running, outlive.counts.pending) == (0, 0)


def test_a_handler_that_never_returns_does_not_hold_it_up(
    run: Any, serving: Any, wire: Any, watched: Any
) -> None:
    outlive: Outlive = watched(drain_timeout=10.0, cancel_grace=1.0)
    app = FastAPI()
    outlive.install(app)

    @app.get("/hang")
    async def hang() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving(outlive, app):
            request = wire(app, "http", "/hang").handler
            await asyncio.sleep(0)
            stopped = loop.time()
        assert stopped + 8 <= loop.time() <= stopped + 10
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    run(main())


def test_after_it_runs_are_rejected(run: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=10.0)
    async def work() -> None:
        raise AssertionError

    async def main() -> None:
        async with serving(outlive):
            pass
        handle = work.submit()
        assert handle.outcome is Outcome.REJECTED
        assert handle._reason is Rejection.CLOSED

    run(main())
    assert work.submit().outcome is Outcome.REJECTED
    assert outlive.counts.outcomes[Outcome.REJECTED] == outlive.counts.submitted == 2


def test_several_lifespans_on_one_loop(run: Any, serving: Any, outlive: Outlive) -> None:
    @outlive.task(timeout=10.0)
    async def work() -> int:
        await asyncio.sleep(1)
        return 1

    async def main() -> None:
        app = None
        for number in range(1, 4):
            async with serving(outlive, app) as app:
                assert str(outlive.state) == "open"
                assert await work() == 1
                work.submit()
            assert str(outlive.state) == "closed"
            assert outlive.counts.outcomes[Outcome.COMPLETED] == 2 * number

    run(main())


def test_several_lifespans_on_several_loops(run: Any, serving: Any, outlive: Outlive) -> None:
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=10.0)
    async def work() -> int:
        await asyncio.sleep(1)
        return 1

    async def main() -> None:
        async with serving(outlive, app):
            assert await work() == 1
            work.submit()

    for _ in range(3):
        run(main())
    assert outlive.counts.outcomes[Outcome.COMPLETED] == outlive.counts.submitted == 6


def test_what_an_abandoned_loop_left_is_settled_at_the_next_opening(
    new_loop: Any, serving: Any, watched: Any, recorder: Any
) -> None:
    outlive: Outlive = watched(max_running=1)
    started = []

    @outlive.task(timeout=10.0)
    async def work(number: int) -> None:
        started.append(number)
        await asyncio.sleep(1)

    # As with a server that runs no lifespan, or a process that forked: the loop goes away, and says nothing.
    abandoned = new_loop()
    handles: list[Any] = []

    async def begin() -> None:
        outlive._runner.open()
        handles.extend(work.submit(number) for number in range(10))
        await asyncio.sleep(0)

    abandoned.run_until_complete(begin())

    async def main() -> None:
        async with serving(outlive):
            assert [handle.outcome for handle in handles] == [Outcome.CANCELLED] * 10
            assert (outlive.counts.running, outlive.counts.pending) == (0, 0)
            await asyncio.sleep(5)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert started == [0]
    assert len(recorder.of("run_started")) == 1
    assert len(recorder.of("run_ended")) == 10
    handles[0]._work.cancel()
    abandoned.run_until_complete(asyncio.sleep(0))
    abandoned.close()


@pytest.mark.parametrize("how", ["native", "anyio"])
def test_cancelled_in_the_middle(run: Any, watched: Any, recorder: Any, registry: Any, how: str) -> None:
    outlive: Outlive = watched()
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=10.0)
    async def work() -> None:
        await asyncio.sleep(5)

    async def serve() -> None:
        async with app.router.lifespan_context(app):
            handles.append(work.submit())

    handles: list[Any] = []

    async def main() -> None:
        if how == "anyio":
            with anyio.move_on_after(1) as scope:
                await serve()
            assert scope.cancelled_caught
        else:
            server = asyncio.create_task(serve())
            await asyncio.sleep(1)
            server.cancel()
            with pytest.raises(asyncio.CancelledError):
                await server
        assert outlive.state is State.CLOSED
        await asyncio.sleep(0.1)
        assert handles[0].outcome is Outcome.CANCELLED
        assert work.submit().outcome is Outcome.REJECTED
        assert recorder.of("closed")

    run(main())
    assert registry.get_sample_value("outlive_draining") == 0


def test_begin_drain(run: Any, serving: Any, outlive: Outlive, registry: Any) -> None:
    @outlive.task(timeout=10.0)
    async def work() -> int:
        return 1

    async def main() -> None:
        outlive.begin_drain()
        assert str(outlive.state) == "closed"
        async with serving(outlive):
            assert str(outlive.state) == "open"
            outlive.begin_drain()
            outlive.begin_drain()
            assert str(outlive.state) == "draining"
            assert registry.get_sample_value("outlive_draining") == 1
            assert await work() == 1
        assert str(outlive.state) == "closed"
        outlive.begin_drain()
        assert str(outlive.state) == "closed"
        assert registry.get_sample_value("outlive_draining") == 0

    run(main())


def test_the_drain_starts_once(run: Any, serving: Any, watched: Any, recorder: Any) -> None:
    outlive: Outlive = watched()

    async def main() -> None:
        async with serving(outlive):
            outlive.begin_drain()

    run(main())
    assert len(recorder.of("drain_started")) == 1


def test_a_budget_that_cannot_work_is_told(
    run: Any, serving: Any, watched: Any, caplog: pytest.LogCaptureFixture
) -> None:
    outlive: Outlive = watched(drain_timeout=20.0, server_grace=15.0, stop_grace=30.0)

    @outlive.task(timeout=25.0)
    async def long() -> None:
        pass

    @outlive.task(timeout=20.0)
    async def fits() -> None:
        pass

    async def main() -> None:
        async with serving(outlive):
            pass

    run(main())
    assert outlive.warnings() == [
        "a stop may take 35 s (server_grace 15 s + drain_timeout 20 s) but the process is killed after 30 s (stop_grace)",
        "task 'long' may run for 25 s, but a drain cancels what is left after 20 s",
    ]
    told = [record.message for record in caplog.records if record.message.startswith("budget: ")]
    assert told == [f"budget: {warning}" for warning in outlive.warnings()]


def test_a_budget_that_works_is_not_told(watched: Any) -> None:
    assert watched(drain_timeout=20.0, server_grace=10.0, stop_grace=30.0).warnings() == []


def test_a_long_request_on_any_kind_of_loop(new_loop: Any, serving: Any, outlive: Outlive, wire: Any) -> None:
    app = FastAPI()
    outlive.install(app)

    @app.get("/slow")
    async def slow() -> None:
        await asyncio.sleep(5)

    async def main() -> None:
        async with serving(outlive, app):
            await wire(app, "http", "/slow").handler

    # An eager task that enters the context of the very callback that makes it breaks the loop, and nothing ends any
    # more. So the loop is stopped from outside, and not tidied up as asyncio.Runner would.
    loop = new_loop()
    loop.call_later(60, loop.stop)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
