"""Task declarations and the handles of their runs."""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial, update_wrapper
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from outlive.connections import Connection
from outlive.deadlines import Deadlines
from outlive.errors import DeclarationError, RunCancelled, RunRejected, RunTimedOut
from outlive.observer import RunDetails, TaskDetails, TraceMode
from outlive.outcomes import COMPLETED, Outcome, Rejection

if TYPE_CHECKING:
    from outlive.runner import Runner

P = ParamSpec("P")
R = TypeVar("R")


def declare(
    name: str,
    *,
    timeout: float,
    max_wait: float | None = None,
    max_running: int | None = None,
    max_pending: int | None = None,
    trace: TraceMode = "auto",
) -> TaskDetails:
    """Check a declaration and write it down.

    Raises:
        DeclarationError: a name that can't be a label, a time that isn't positive and finite, a limit below its
            least useful value, or an unknown trace mode.
    """
    if not isinstance(name, str) or not name or len(name) > 100 or not name.isprintable():
        raise DeclarationError(f"a task's name must be 1 to 100 printable characters, not {name!r}")
    check_seconds(f"task {name!r}: timeout", timeout)
    max_wait = timeout if max_wait is None else max_wait
    check_seconds(f"task {name!r}: max_wait", max_wait)
    if max_running is not None:
        check_limit(f"task {name!r}: max_running", max_running, 1)
    if max_pending is not None:
        check_limit(f"task {name!r}: max_pending", max_pending, 0)
    if trace not in ("auto", "child", "link"):
        raise DeclarationError(f"task {name!r}: trace must be 'auto', 'child' or 'link', not {trace!r}")
    return TaskDetails(name, float(timeout), float(max_wait), max_running, max_pending, trace)


def check_seconds(what: str, seconds: object) -> None:
    """Refuse a time that isn't a positive, finite number of seconds.

    Raises:
        DeclarationError: it isn't.
    """
    # A timer's heap takes what a float holds; an int may be larger.
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 < seconds <= sys.float_info.max:  # type: ignore[operator]
        raise DeclarationError(f"{what} must be a positive, finite number of seconds, not {seconds!r}")


def check_limit(what: str, limit: object, least: int) -> None:
    """Refuse a limit that isn't a whole number of at least `least`.

    Raises:
        DeclarationError: it isn't.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < least:
        raise DeclarationError(f"{what} must be a whole number of at least {least}, not {limit!r}")


class Run(Generic[R]):
    """One execution of a task.

    Await it for the function's result. That raises what the function raised, or `RunTimedOut`, `RunCancelled` or
    `RunRejected`. Whoever awaits can be cancelled without harm to the run: that counts as an absorbed cancellation.
    Nobody has to await a run.
    """

    __slots__ = (
        "__weakref__",
        "_begun",
        "_call",
        "_connection",
        "_context",
        "_details",
        "_error",
        "_grace",
        "_reason",
        "_result",
        "_runner",
        "_sequence",
        "_started_at",
        "_stop",
        "_submitted_at",
        "_task",
        "_verdict",
        "_waiters",
        "_work",
        "outcome",
    )

    outcome: Outcome | None
    """How the run ended; None until it has."""

    def __init__(
        self,
        runner: "Runner",
        task: "Declared",
        call: Callable[[], Coroutine[Any, Any, R]] | None,
        context: Context | None,
        connection: Connection | None,
    ) -> None:
        self.outcome = None
        self._runner = runner
        self._task = task
        self._call = call
        self._context = context
        self._connection = connection
        self._details: RunDetails | None = None
        self._submitted_at = 0.0
        self._started_at: float | None = None
        self._sequence: int | None = None
        """Its place among those that wait, while it waits."""
        self._begun = False
        self._grace: asyncio.TimerHandle | None = None
        self._work: asyncio.Task[Any] | None = None
        self._stop: Callable[[], object] | None = None
        self._verdict: Outcome | None = None
        self._result: R
        self._error: BaseException | None = None
        self._reason: Rejection | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def name(self) -> str:
        """The task's name."""
        return self._task.details.name

    def cancel(self) -> bool:
        """Cancel the run, waiting or executing, from any thread. Tell whether there was anything to cancel."""
        return self._runner.cancel(self)

    def _never_began(self, work: asyncio.Task[Any]) -> None:
        if work.cancelled():
            self._runner.never_began(self)

    def __await__(self) -> Generator[Any, None, R]:
        if self.outcome is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                # Looked at again: on another event loop's thread, the run may have ended since.
                if self.outcome is None:
                    yield from waiter
            except asyncio.CancelledError:
                self._runner.absorbed(self)
                raise
            finally:
                # The list is gone once the run has ended; a long run must not collect those who gave up.
                if self.outcome is None:
                    self._waiters.remove(waiter)
        return self._value()

    def _value(self) -> R:
        if self.outcome is COMPLETED:
            return self._result
        match self.outcome:
            case Outcome.FAILED:
                assert self._error is not None
                raise self._error
            case Outcome.TIMED_OUT:
                waited = self._started_at is None
                limit = self._task.details.max_wait if waited else self._task.details.timeout
                raise RunTimedOut(
                    self.name,
                    f"no slot within {limit:g} s" if waited else f"timed out after {limit:g} s",
                ) from self._error
            case Outcome.REJECTED:
                assert self._reason is not None
                raise RunRejected(self.name, self._reason)
            case _:
                raise RunCancelled(self.name, "cancelled") from self._error

    def __repr__(self) -> str:
        state = self.outcome or ("pending" if self._started_at is None else "running")
        return f"<Run {self.name!r} {state}>"


class Declared:
    """A declared name with its limits, and what of it runs and waits."""

    executing: "Deadlines[Run[Any]]"
    """Those that execute and haven't been told to stop, in the order of their start."""
    waiting: "Deadlines[Run[Any]]"
    """Those that wait for a slot, in the order of their submission."""

    def __init__(self, details: TaskDetails) -> None:
        self.details = details
        self.running = 0
        self.stuck = 0

    @property
    def has_slot(self) -> bool:
        """Whether the task's own limit lets one more run execute."""
        return has_slot(self.running, self.stuck, self.details.max_running)


def has_slot(running: int, stuck: int, limit: int | None) -> bool:
    """Whether one more may execute.

    A stuck run gives its slot back, so that it holds up nobody; but as many stuck ones as slots is the most there
    can be, or a task that never ends would collect runs without a bound.
    """
    return limit is None or (running < limit and running + stuck < 2 * limit)


class Task(Declared, Generic[P, R]):
    """A declared task: call and await it for a shielded run, or `submit` a detached one."""

    __name__: str
    __wrapped__: Callable[P, Coroutine[Any, Any, R]]

    def __init__(
        self, runner: "Runner", function: Callable[P, Coroutine[Any, Any, R]], details: TaskDetails
    ) -> None:
        # By its type: a class whose instances are async callables isn't one itself.
        if not (iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)):
            raise DeclarationError(
                f"task {details.name!r} must be an async function (`async def`); run blocking code in one with "
                "`await anyio.to_thread.run_sync(...)`"
            )
        super().__init__(details)
        self._runner = runner
        self._function = function
        update_wrapper(self, function, updated=())

    @property
    def name(self) -> str:
        """The name in metrics, spans and logs."""
        return self.details.name

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Run[R]:
        """Start a detached run and return its handle at once.

        Never raises and never blocks, so that it works in `finally` blocks, in generators' clean-up and in code
        that is being cancelled, and from any thread. Over a bound, or when the process isn't open, the run's
        outcome is `rejected`: counted, logged, and told by `Run.outcome`.
        """
        return self._runner.submit(self, partial(self._function, *args, **kwargs))

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run, shielded, and wait for the result.

        If the caller is cancelled meanwhile, the cancellation is counted as absorbed and raised on in the caller;
        the run goes on.

        Raises:
            RunTimedOut, RunCancelled, RunRejected: the run ended without a result.
            BaseException: whatever the function raised.
        """
        return await self.submit(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name!r} timeout={self.details.timeout:g}s>"
