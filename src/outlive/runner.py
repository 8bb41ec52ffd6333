"""The runner: it owns runs, bounds them, gives each one outcome, and drains them at the end."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from outlive import connections
from outlive.deadlines import Deadlines
from outlive.errors import DeclarationError
from outlive.observer import Limits, Observer, RunDetails, RunEnd
from outlive.outcomes import CLOSED, COMPLETED, Outcome, Rejection, State
from outlive.stacks import suspended_stack
from outlive.tasks import Declared, Run, check_limit, has_slot

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of all runs so far: `submitted == sum(outcomes.values()) + running + pending`, at every moment."""

    submitted: int
    outcomes: dict[Outcome, int]
    running: int
    pending: int
    stuck: int
    """Runs that have their outcome and still haven't ended."""


GRACE_TURNS = 50
"""So many turns of the event loop a cancelled run gets to end, beside the cancel grace: in a loop that is held up, time
passes without anybody having had the chance."""


class Runner:
    """Runs tasks outside of their callers.

    Everything happens on one event loop, the one that `open` was called on; only `submit` and `cancel` may be called
    from other threads, and hand over to it.
    """

    def __init__(self, limits: Limits, *, cancel_grace: float, observer: Observer) -> None:
        check_limit("max_running", limits.max_running, 1)
        check_limit("max_pending", limits.max_pending, 0)
        self.limits = limits
        self.state = CLOSED
        self.connections = 0
        self.submitted = 0
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.running = 0
        self.pending = 0
        self._cancel_grace = cancel_grace
        self._observer = observer
        self._loop: asyncio.AbstractEventLoop | None = None
        # A run that is rejected before the first start has no event loop, but a time all the same.
        self._now: Callable[[], float] = time.monotonic
        # The runner's own callbacks run in it, so that no request's trace leaks into them.
        self._clean_context = Context()
        self._declared: dict[str, Declared] = {}
        # The strong reference that makes the runner the owner: the event loop itself keeps weak ones only.
        self._live: set[Run[Any]] = set()
        self._stuck: set[Run[Any]] = set()
        self._waiting: dict[Declared, None] = {}
        self._starting = False
        self._changed: asyncio.Future[None] | None = None
        # Rejections in threads, where no event loop orders the counting.
        self._rejected_elsewhere = 0
        self._elsewhere = threading.Lock()

    @property
    def counts(self) -> Counts:
        """The numbers of this moment."""
        rejected = self.outcomes[Outcome.REJECTED] + self._rejected_elsewhere
        return Counts(
            self.submitted + self._rejected_elsewhere,
            {**self.outcomes, Outcome.REJECTED: rejected},
            self.running,
            self.pending,
            len(self._stuck),
        )

    @property
    def declared(self) -> list[Declared]:
        """Every declaration, in order."""
        return list(self._declared.values())

    def declare(self, declared: Declared) -> None:
        """Take up a declaration.

        Raises:
            DeclarationError: the name is taken.
        """
        name = declared.details.name
        if name in self._declared:
            raise DeclarationError(
                f"two tasks are named {name!r}: their metrics and traces could not be told apart; pass name="
            )
        self._declared[name] = declared
        declared.executing = Deadlines(declared.details.timeout, self._deadline_passed)
        declared.waiting = Deadlines(declared.details.max_wait, self._waited_too_long)
        self._observer.task_declared(declared.details)

    def find(self, name: str) -> Declared | None:
        """The declaration of that name."""
        return self._declared.get(name)

    def open(self) -> None:
        """Accept runs from now on, on the running event loop, with a clean tracker."""
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        # What an event loop left that was closed under the runner can't end by itself any more, and must not start.
        self.state = CLOSED
        for run in list(self._live):
            self._settle(run, run._verdict or Outcome.CANCELLED)
        for run in list(self._stuck):
            self._let_go(run)
        for declared in self._declared.values():
            declared.executing.stop()
            declared.waiting.stop()
        self.connections = 0
        self.state = State.OPEN
        self._observer.opened(self.limits)

    def is_on(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether that is the loop that the runs execute on."""
        return self._loop is loop

    # Submitting and starting

    def submit(self, declared: Declared, call: Callable[[], Coroutine[Any, Any, R]]) -> Run[R]:
        """Run `call` in a copy of the caller's context. From any thread; never raises, never blocks."""
        run = Run(self, declared, call, copy_context(), connections.current.get())
        if self._is_here():
            self._admit(run)
        elif self.state is CLOSED or not self._hand_over(run):
            self._reject_elsewhere(run)
        return run

    def enter(self, declared: Declared, stop: Callable[[], object]) -> Run[None]:
        """Begin a run whose work is its caller's own block, which `stop` must cancel. It never waits for a slot."""
        run: Run[None] = Run(self, declared, None, None, connections.current.get())
        run._stop = stop
        run._work = asyncio.current_task()
        self._admit(run)
        return run

    def leave(self, run: Run[None], error: BaseException | None) -> None:
        """The block of an entered run is over."""
        self._work_ended(run, error)

    def _is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _hand_over(self, run: Run[Any]) -> bool:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._admit, run, context=self._clean_context)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _reject_elsewhere(self, run: Run[Any]) -> None:
        # It touches nothing that belongs to the event loop: no flow, no slot, no drain that waits for a change.
        run._connection = None
        details = self._describe(run)
        run._reason = Rejection.CLOSED
        with self._elsewhere:
            self._rejected_elsewhere += 1
        run.outcome = Outcome.REJECTED
        self._observer.run_submitted(details)
        self._observer.run_ended(details, RunEnd(Outcome.REJECTED, 0.0, None, reason=Rejection.CLOSED))

    def _describe(self, run: Run[Any]) -> RunDetails:
        run._submitted_at = self._now()
        flow = None
        if run._connection is not None:
            flow = run._connection.join_flow()
            if flow is None:
                run._connection = None
        run._details = RunDetails(run._task.details, run._context, flow)
        return run._details

    def _admit(self, run: Run[Any]) -> None:
        # The numbers change before anything can be awaited, so fifty submits in one step see each other; and before
        # an observer is told, so that it sees numbers that add up.
        if self._waiting:
            self._start_waiting()  # an observer of a run's end submits before those that wait for its slot have got it
        details = self._describe(run)
        self.submitted += 1
        starts = self.state is not CLOSED and self._can_start(run._task)
        if not starts:
            run._reason = self._refusal(run)
        if run._reason is not None or run._verdict is not None:
            end = self._count_out(run, Outcome.CANCELLED if run._reason is None else Outcome.REJECTED)
            self._observer.run_submitted(details)
            self._tell_end(run, end)
        elif starts:
            self._live.add(run)
            self._take_slot(run, run._submitted_at)
            self._observer.run_submitted(details)
            self._start(run, queued=False)
        else:
            self._live.add(run)
            self._queue(run)
            self._observer.run_submitted(details)
            self._observer.run_queued(details)

    def _can_start(self, declared: Declared) -> bool:
        return self._has_slot and declared.has_slot

    @property
    def _has_slot(self) -> bool:
        return has_slot(self.running, len(self._stuck), self.limits.max_running)

    def _refusal(self, run: Run[Any]) -> Rejection | None:
        declared = run._task
        if self.state is CLOSED:
            return Rejection.CLOSED
        if run._call is None:
            return Rejection.TASK_FULL if self._has_slot else Rejection.FULL
        if self.pending >= self.limits.max_pending:
            return Rejection.FULL
        own_limit = declared.details.max_pending
        return None if own_limit is None or len(declared.waiting) < own_limit else Rejection.TASK_FULL

    def _queue(self, run: Run[Any]) -> None:
        assert self._loop is not None
        run._sequence = self.submitted
        run._task.waiting.add(run, run._submitted_at, self._loop)
        self._waiting[run._task] = None
        self.pending += 1

    def _unqueue(self, run: Run[Any]) -> None:
        run._sequence = None
        run._task.waiting.remove(run)
        if not run._task.waiting:
            del self._waiting[run._task]
        self.pending -= 1

    def _start_waiting(self) -> None:
        if not self._starting:
            # Not in the context of the run that made room: its trace is none of theirs.
            self._clean_context.copy().run(self._start_those_that_can)

    def _start_those_that_can(self) -> None:
        # An eager task factory can end a run before create_task returns, and so come here again from within.
        self._starting = True
        try:
            while self._waiting and self._has_slot and self.state is not CLOSED:
                heads = [next(iter(declared.waiting)) for declared in self._waiting if declared.has_slot]
                if not heads:
                    return
                first = min(heads, key=lambda run: run._sequence or 0)
                self._unqueue(first)
                self._take_slot(first, self._now())
                self._start(first, queued=True)
        finally:
            self._starting = False

    def _take_slot(self, run: Run[Any], now: float) -> None:
        run._started_at = now
        self.running += 1
        run._task.running += 1

    def _start(self, run: Run[Any], *, queued: bool) -> None:
        assert self._loop is not None
        assert run._details is not None
        assert run._started_at is not None
        declared = run._task
        declared.executing.add(run, run._started_at, self._loop)
        self._observer.run_started(run._details, run._started_at - run._submitted_at, queued)
        if run._call is None:
            return
        work = self._execute(run)
        try:
            run._work = self._loop.create_task(work, name=declared.details.name, context=run._context)
        except BaseException as error:  # the application's own task factory raised; the run must still end
            work.close()
            self._work_ended(run, error)
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            if run._verdict is not None and run.outcome is None:
                run._work.cancel()  # an eager first step has cancelled the run it belongs to
            if not run._begun:
                run._work.add_done_callback(run._never_began, context=self._clean_context)

    async def _execute(self, run: Run[Any]) -> None:
        assert run._call is not None
        run._begun = True
        if run._work is not None:
            # From here on the end is told from within: a callback at the end would cost 1.0 µs (0.4 on uvloop).
            run._work.remove_done_callback(run._never_began)
        try:
            run._result = await run._call()
        except BaseException as error:  # also a SystemExit: a run must not end the server
            self._work_ended(run, error)
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            self._work_ended(run, None)
        finally:
            # The error that the run keeps holds this frame by its traceback: with the run in it, that is a cycle.
            del run

    def never_began(self, run: Run[Any]) -> None:
        """The work was cancelled before its first step: not one line of it ever ran."""
        self._work_ended(run, asyncio.CancelledError())

    # Ending

    def cancel(self, run: Run[Any]) -> bool:
        """Cancel a run, from any thread. Tell whether there was anything to cancel."""
        if run.outcome is not None:
            return False
        if self._is_here():
            self._cancel(run)
        else:
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._cancel, run, context=self._clean_context)
            except RuntimeError:  # the loop is closed, and with it the run is over
                return False
        return True

    def absorbed(self, run: Run[Any]) -> None:
        """A cancellation hit whoever waits for the run."""
        if run.outcome is None and run._details is not None:
            self._observer.cancellation_absorbed(run._details)

    def _cancel(self, run: Run[Any]) -> None:
        if run._started_at is not None:
            self._stop(run, Outcome.CANCELLED)
        elif run._details is None:
            # Submitted in a thread, and not arrived here yet.
            run._verdict = Outcome.CANCELLED
        elif run.outcome is None:
            self._settle(run, Outcome.CANCELLED)

    def _waited_too_long(self, run: Run[Any]) -> None:
        self._settle(run, Outcome.TIMED_OUT)

    def _deadline_passed(self, run: Run[Any]) -> None:
        assert run._details is not None
        self._observer.deadline_passed(run._details)
        self._stop(run, Outcome.TIMED_OUT)

    def _stop(self, run: Run[Any], verdict: Outcome) -> None:
        if run._verdict is not None or run.outcome is not None:
            return
        # From here on the work can't become completed: what swallows its cancellation and returns early has not
        # done what it was asked for.
        run._verdict = verdict
        run._task.executing.remove(run)
        assert self._loop is not None
        run._grace = self._loop.call_later(
            self._cancel_grace, self._give_up, run, context=self._clean_context
        )
        if run._stop is not None:
            run._stop()
        elif run._work is not None:
            run._work.cancel()

    def _give_up(self, run: Run[Any], turns: int = GRACE_TURNS) -> None:
        if run.outcome is not None:
            return
        if turns:
            assert self._loop is not None
            self._loop.call_soon(self._give_up, run, turns - 1, context=self._clean_context)
            return
        assert run._verdict is not None
        assert run._details is not None
        self._stuck.add(run)
        run._task.stuck += 1
        self._observer.run_stuck(run._details, suspended_stack(run._work))
        self._settle(run, run._verdict)

    def _let_go(self, run: Run[Any]) -> None:
        assert run._details is not None
        self._stuck.discard(run)
        run._task.stuck -= 1
        self._observer.run_unstuck(run._details)
        if self._waiting:
            self._start_waiting()

    def _work_ended(self, run: Run[Any], error: BaseException | None) -> None:
        if run.outcome is not None:
            if run in self._stuck:
                self._let_go(run)
        else:
            run._error = error
            if run._verdict is not None:
                self._settle(run, run._verdict)
            elif error is None:
                self._settle(run, COMPLETED)
            elif isinstance(error, asyncio.CancelledError):
                self._settle(run, Outcome.CANCELLED)
            else:
                self._settle(run, Outcome.FAILED)

    def _settle(self, run: Run[Any], outcome: Outcome) -> None:
        self._tell_end(run, self._count_out(run, outcome))

    def _count_out(self, run: Run[Any], outcome: Outcome) -> RunEnd:
        now = self._now()
        wait, duration = now - run._submitted_at, None
        if run._started_at is not None:
            wait, duration = run._started_at - run._submitted_at, now - run._started_at
            self.running -= 1
            run._task.running -= 1
            run._task.executing.remove(run)
            if run._grace is not None:
                run._grace.cancel()
        elif run._sequence is not None:
            self._unqueue(run)
        self._live.discard(run)
        self.outcomes[outcome] += 1
        run.outcome = outcome
        run._call = None
        return RunEnd(outcome, wait, duration, run._error, run._reason)

    def _tell_end(self, run: Run[Any], end: RunEnd) -> None:
        assert run._details is not None
        self._observer.run_ended(run._details, end)
        if run._waiters:
            self._wake(run)
        if run._connection is not None:
            run._connection.leave_flow()
        if self._waiting:
            self._start_waiting()
        if self._changed is not None:
            _resolve(self._changed)

    def _wake(self, run: Run[Any]) -> None:
        waiters, run._waiters = run._waiters, []
        for waiter in waiters:
            loop = waiter.get_loop()
            if loop is self._loop:
                _resolve(waiter)
            else:
                with suppress(RuntimeError):  # its loop is closed, so nobody waits there
                    loop.call_soon_threadsafe(_resolve, waiter)

    # Connections and drains

    def connection_opened(self) -> None:
        """A handler starts. The drain waits for it, since what it does at its end may still submit runs."""
        self.connections += 1

    def connection_closed(self) -> None:
        """A handler has returned."""
        self.connections -= 1
        if self._changed is not None:
            _resolve(self._changed)

    def begin_drain(self) -> None:
        """Turn red now; runs are still accepted."""
        if self.state is State.OPEN:
            self.state = State.DRAINING
            self._observer.drain_started()

    async def drain(self, timeout: float) -> None:
        """Let connections and runs end, then cancel what is left; all within `timeout` seconds.

        Runs are accepted until no handler is left and nothing runs or waits, both at the same time, or until the
        budget less the cancel grace is spent.
        """
        started = self._now()
        self.begin_drain()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(started + max(0.0, timeout - self._cancel_grace)):
                    while self.connections or self._live:
                        await self._change()
        finally:
            left = self.close()
        while self._live:  # each of them ends, or is given up within the cancel grace
            await self._change()
        stuck = sorted(run.name for run in self._stuck)
        self._observer.drain_ended(self._now() - started, len(left), stuck)

    def close(self) -> list[Run[Any]]:
        """Accept no more runs, cancel what is there, and tell what that was."""
        self.state = CLOSED
        left = list(self._live)
        for run in left:
            self._cancel(run)
        return left

    async def _change(self) -> None:
        assert self._loop is not None
        self._changed = self._loop.create_future()
        try:
            await self._changed
        finally:
            self._changed = None


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
