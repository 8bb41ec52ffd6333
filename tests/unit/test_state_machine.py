"""Whatever happens in whatever order, promises 2 and 3 hold in between any two turns of the event loop."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, WebSocket
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from prometheus_client import CollectorRegistry

from outlive import Observer, Outcome, Outlive, Run, RunDetails, RunEnd, RunError, State

MAX_RUNNING = 3
MAX_PENDING = 3
OWN_LIMITS: dict[str, tuple[int | None, int | None]] = {
    "plain": (None, None),
    "pair": (2, None),
    "single": (1, 1),
}
TASKS = list(OWN_LIMITS)
BEHAVIOURS = ["complete", "raise", "swallow", "never"]
SECONDS = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 5.0])


class Ledger(Observer):
    """Keeps its own books of what it is told, and objects to what must not be."""

    def __init__(self) -> None:
        self.submitted: list[RunDetails] = []
        self.waiting: list[RunDetails] = []
        self.running: list[RunDetails] = []
        self.stuck: list[RunDetails] = []
        self.ended: dict[RunDetails, Outcome] = {}
        self.wrong: list[str] = []

    def run_submitted(self, run: RunDetails) -> None:
        self.submitted.append(run)

    def run_queued(self, run: RunDetails) -> None:
        if self.can_start(run):
            self.wrong.append(f"{run.task.name} waits, and there is a slot")
        self.waiting.append(run)

    def run_started(self, run: RunDetails, wait: float, queued: bool) -> None:
        if queued:
            older = self.waiting[: self.waiting.index(run)]
            self.wrong += [f"{run.task.name} overtook {o.task.name}" for o in older if self.can_start(o)]
            self.waiting.remove(run)
        else:
            same = [other for other in self.waiting if other.task is run.task]
            self.wrong += [f"a new {run.task.name} overtook one that waits" for _ in same]
        self.running.append(run)

    def run_stuck(self, run: RunDetails, stack: str) -> None:
        self.stuck.append(run)

    def run_unstuck(self, run: RunDetails) -> None:
        self.stuck.remove(run)

    def run_ended(self, run: RunDetails, end: RunEnd) -> None:
        if run in self.ended:
            self.wrong.append(f"{run.task.name} ended twice")
        self.ended[run] = end.outcome
        if run in self.running:
            self.running.remove(run)
        elif run in self.waiting:
            self.waiting.remove(run)
        elif end.outcome is not Outcome.REJECTED:
            self.wrong.append(f"{run.task.name} ended as {end.outcome} out of nowhere")

    def can_start(self, run: RunDetails) -> bool:
        def has_slot(running: int, stuck: int, limit: int | None) -> bool:
            return limit is None or (running < limit and running + stuck < 2 * limit)

        def of(runs: list[RunDetails]) -> int:
            return sum(other.task is run.task for other in runs)

        return has_slot(len(self.running), len(self.stuck), MAX_RUNNING) and has_slot(
            of(self.running), of(self.stuck), run.task.max_running
        )


class Process(RuleBasedStateMachine):
    new_loop: Callable[[], asyncio.AbstractEventLoop]

    def __init__(self) -> None:
        super().__init__()
        self.loop = type(self).new_loop()
        self.unheard: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.unheard.append(context))
        self.registry = CollectorRegistry()
        self.ledger = Ledger()
        self.outlive = Outlive(
            registry=self.registry,
            observers=[self.ledger],
            max_running=MAX_RUNNING,
            max_pending=MAX_PENDING,
            drain_timeout=8.0,
            cancel_grace=1.0,
        )
        self.tasks = {
            name: self.outlive.task(
                name=name, timeout=3.0, max_wait=4.0, max_running=running, max_pending=pending
            )(self.work)
            for name, (running, pending) in OWN_LIMITS.items()
        }
        self.app = FastAPI()
        self.outlive.install(self.app)
        self.app.websocket("/room")(self.room)
        self.runs: list[Run[None]] = []
        self.callers: list[asyncio.Task[None]] = []
        self.connections: list[tuple[asyncio.Queue[dict[str, Any]], asyncio.Task[None]]] = []
        self.released = asyncio.Event()
        self.lifespan: Any = None
        self.drain: asyncio.Task[Any] | None = None
        self.open()

    # What the service does

    async def work(self, behaviour: str, seconds: float) -> None:
        patience = {"complete": 0, "raise": 0, "swallow": 1, "never": 1_000_000}[behaviour]
        if behaviour == "never":
            seconds = 1e9
        released = self.released
        while not released.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await released.wait()
            except TimeoutError:
                break
            except asyncio.CancelledError:
                if not patience:
                    raise
                patience -= 1
        if behaviour == "raise":
            raise ZeroDivisionError

    async def room(self, ws: WebSocket) -> None:
        await ws.accept()
        try:
            async for _ in ws.iter_text():
                pass
        finally:
            self.submit_on_loop("single", "complete", 1.0)
            self.submit_on_loop("plain", "raise", 0.5)

    def submit_on_loop(self, task: str, behaviour: str, seconds: float) -> None:
        self.runs.append(self.tasks[task].submit(behaviour, seconds))

    # How the loop is driven

    def on_loop(self, what: Callable[[], object]) -> None:
        """Call it in one turn of the loop, after what is ready already."""
        failed: list[BaseException] = []

        def call() -> None:
            try:
                what()
            except BaseException as error:  # noqa: BLE001 - raised on below, outside of the loop
                failed.append(error)

        self.loop.call_soon(call)
        self.turn()
        if failed:
            raise failed[0]

    @rule()
    def turn(self) -> None:
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    @rule(seconds=SECONDS)
    def let_time_pass(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    # What may happen

    @rule(
        task=st.sampled_from(TASKS),
        behaviour=st.sampled_from(BEHAVIOURS),
        seconds=SECONDS,
        times=st.integers(1, 4),
    )
    def submit(self, task: str, behaviour: str, seconds: float, times: int) -> None:
        def submit() -> None:
            for _ in range(times):
                self.submit_on_loop(task, behaviour, seconds)
                self.the_numbers_add_up()

        self.on_loop(submit)

    @precondition(lambda self: self.outlive.state is State.OPEN)
    @rule()
    def let_some_get_stuck(self) -> None:
        self.submit("plain", "never", 0.0, MAX_RUNNING)
        self.let_time_pass(5.0)

    @rule()
    def release_the_stuck(self) -> None:
        released, self.released = self.released, asyncio.Event()
        self.on_loop(released.set)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), patience=SECONDS)
    def wait_for_a_run(self, data: st.DataObject, patience: float) -> None:
        run = data.draw(st.sampled_from(self.runs[-8:]))

        async def wait() -> None:
            with contextlib.suppress(RunError, ZeroDivisionError, TimeoutError):
                async with asyncio.timeout(patience):
                    await run

        self.callers.append(self.loop.create_task(wait()))

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def cancel_a_caller(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(self.callers))
        self.on_loop(caller.cancel)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def cancel_a_run(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.runs[-8:]))

        def cancel() -> None:
            had_ended = run.outcome is not None
            assert run.cancel() is not had_ended

        self.on_loop(cancel)

    @precondition(lambda self: self.outlive.state is not State.CLOSED and len(self.connections) < 4)
    @rule()
    def connect(self) -> None:
        incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        incoming.put_nowait({"type": "websocket.connect"})
        scope: dict[str, Any] = {
            "type": "websocket",
            "path": "/room",
            "headers": [],
            "query_string": b"",
            "subprotocols": [],
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }

        async def send(_message: Any) -> None:
            pass

        async def connection() -> None:
            await self.app(scope, incoming.get, send)

        self.connections.append((incoming, self.loop.create_task(connection())))

    @precondition(lambda self: self.connections)
    @rule(data=st.data(), how=st.sampled_from(["close", "lose", "cancel"]))
    def disconnect(self, data: st.DataObject, how: str) -> None:
        index = data.draw(st.integers(0, len(self.connections) - 1))
        incoming, handler = self.connections.pop(index)
        if how == "cancel":
            self.on_loop(handler.cancel)
        else:
            code = {"close": 1000, "lose": 1006}[how]
            self.on_loop(lambda: incoming.put_nowait({"type": "websocket.disconnect", "code": code}))

    @precondition(lambda self: self.outlive.state is State.OPEN)
    @rule()
    def turn_red(self) -> None:
        self.on_loop(self.outlive.begin_drain)

    @precondition(lambda self: self.drain is None)
    @rule()
    def stop(self) -> None:
        self.drain = self.loop.create_task(self.lifespan.__aexit__(None, None, None))

    @precondition(lambda self: self.drain is not None)
    @rule()
    def start_again(self) -> None:
        # As when a process is started anew, the connections are gone.
        for incoming, _ in self.connections:
            incoming.put_nowait({"type": "websocket.disconnect", "code": 1012})
        self.connections.clear()
        self.finish_the_drain()
        self.open()

    def open(self) -> None:
        self.lifespan = self.app.router.lifespan_context(self.app)
        self.loop.run_until_complete(self.lifespan.__aenter__())
        self.drain = None

    def finish_the_drain(self) -> None:
        assert self.drain is not None
        before = self.loop.time()
        self.loop.run_until_complete(self.drain)
        assert self.loop.time() - before <= 8.0
        counts = self.outlive.counts
        assert (counts.running, counts.pending) == (0, 0)
        assert None not in {run.outcome for run in self.runs}

    # What holds

    @invariant()
    def the_numbers_add_up(self) -> None:
        counts = self.outlive.counts
        assert counts.submitted == sum(counts.outcomes.values()) + counts.running + counts.pending
        assert counts.submitted == len(self.ledger.submitted)
        assert counts.running == len(self.ledger.running)
        assert counts.pending == len(self.ledger.waiting)
        assert counts.stuck == len(self.ledger.stuck)
        for outcome, number in counts.outcomes.items():
            assert number == sum(ended is outcome for ended in self.ledger.ended.values())

    @invariant()
    def the_bounds_hold(self) -> None:
        counts = self.outlive.counts
        assert counts.running <= MAX_RUNNING
        assert counts.pending <= MAX_PENDING
        assert counts.running + counts.stuck <= 2 * MAX_RUNNING
        for name, (max_running, max_pending) in OWN_LIMITS.items():
            running = sum(run.task.name == name for run in self.ledger.running)
            stuck = sum(run.task.name == name for run in self.ledger.stuck)
            waiting = sum(run.task.name == name for run in self.ledger.waiting)
            assert max_running is None or (running <= max_running and running + stuck <= 2 * max_running)
            assert max_pending is None or waiting <= max_pending

    @invariant()
    def nobody_waits_for_a_free_slot(self) -> None:
        assert not [run for run in self.ledger.waiting if self.ledger.can_start(run)]

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert self.ledger.wrong == []
        assert self.unheard == []

    @invariant()
    def the_metrics_say_the_same(self) -> None:
        counts = self.outlive.counts
        said: dict[tuple[str, ...], float] = {}
        names = ["outlive_runs_total", "outlive_runs_running", "outlive_runs_pending", "outlive_runs_stuck"]
        for family in self.registry.restricted_registry(names).collect():
            for sample in family.samples:
                key = (sample.name, sample.labels.get("outcome", ""))
                said[key] = said.get(key, 0) + sample.value
        so: dict[tuple[str, ...], float] = {
            ("outlive_runs_running", ""): counts.running,
            ("outlive_runs_pending", ""): counts.pending,
            ("outlive_runs_stuck", ""): counts.stuck,
        }
        so |= {("outlive_runs_total", outcome): number for outcome, number in counts.outcomes.items()}
        assert said == so

    def teardown(self) -> None:
        try:
            self.end()
        finally:
            self.loop.close()

    def end(self) -> None:
        if self.drain is None:
            self.stop()
        self.finish_the_drain()
        self.released.set()
        for _, handler in self.connections:
            handler.cancel()
        pending = [*self.callers, *(handler for _, handler in self.connections)]
        if pending:
            self.loop.run_until_complete(asyncio.wait(pending))
        self.let_time_pass(5.0)
        self.nothing_went_wrong()
        assert self.outlive.counts.stuck == 0
        assert len(self.ledger.ended) == len(self.ledger.submitted)
        assert asyncio.all_tasks(self.loop) == set()


def test_every_interleaving(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    process = type("Process", (Process,), {"new_loop": staticmethod(new_loop)})
    run_state_machine_as_test(
        process,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
