"""What the core tells those who watch it.

Telemetry hangs on `Observer` alone, so the core imports no metrics, tracing or logging library.
"""

import logging
from collections.abc import Callable, Iterable
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from outlive.outcomes import Cause, ConnectionRejection, Outcome, Rejection, Transport

logger = logging.getLogger("outlive")

TraceMode = Literal["auto", "child", "link"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of the whole runner, in runs."""

    max_running: int
    max_pending: int


@dataclass(frozen=True, slots=True, eq=False)
class TaskDetails:
    """A task as it was declared. Times are in seconds, limits in runs; None means "no limit of its own"."""

    name: str
    timeout: float
    max_wait: float
    max_running: int | None
    max_pending: int | None
    trace: TraceMode


class ConnectionDetails(NamedTuple):
    """One WebSocket, one streaming response or one plain request, as it came in. No two of them are equal."""

    # Named tuples, this and those of runs: as frozen dataclasses they cost 0.7 µs more a run.

    method: str
    opened_at: float
    """On the event loop's clock, in seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class DisconnectDetails:
    """The end of a connection before the server had finished it."""

    connection: ConnectionDetails
    cause: Cause
    route: str
    transport: Transport
    at: float
    """On the event loop's clock, in seconds."""
    at_ns: int
    """On the wall clock, in nanoseconds since the epoch."""
    connection_duration: float
    """From the connection's start to the disconnect, in seconds."""


class RunDetails(NamedTuple):
    """One execution of a task, or of a scope's block. No two of them are equal."""

    task: TaskDetails
    context: Context | None
    """The run's own context variables; None for a scope, whose block runs in its caller's."""
    flow: DisconnectDetails | None
    """The disconnect that caused the run; None where the run was submitted on an open connection, or on none."""


class RunEnd(NamedTuple):
    """How a run ended. Times are in seconds."""

    outcome: Outcome
    wait: float
    """From submission to the start of execution, or to the end where it never started."""
    duration: float | None
    """Of the execution; None where it never started."""
    error: BaseException | None = None
    reason: Rejection | None = None

    @property
    def error_type(self) -> str:
        """A low-cardinality name of what went wrong: the exception's type where the work raised, else the outcome."""
        if self.outcome is not Outcome.FAILED or self.error is None:
            return self.outcome
        kind = type(self.error)
        return (
            kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        )


for _details in (ConnectionDetails, RunDetails):
    # Each is itself, as it would be as an object. (In its body, a named tuple has room for fields only.)
    _details.__eq__ = object.__eq__  # type: ignore[method-assign]
    _details.__hash__ = object.__hash__  # type: ignore[method-assign]


class Observer:
    """Hears what happens to tasks, runs, connections and drains.

    Every method has an empty default: subclass and write those you need. They are called on the event loop (a
    rejection after the end of the loop may come from any thread) and must not block. What they raise is logged once
    and disturbs nothing.
    """

    def task_declared(self, task: TaskDetails) -> None:
        """A task was declared."""

    def opened(self, limits: Limits) -> None:
        """The runner accepts runs. An event loop is running."""

    def run_submitted(self, run: RunDetails) -> None:
        """A run was asked for."""

    def run_queued(self, run: RunDetails) -> None:
        """The run has to wait for a slot."""

    def run_started(self, run: RunDetails, wait: float, queued: bool) -> None:
        """The run got its slot: at once, or `queued` first, `wait` seconds after it was submitted."""

    def cancellation_absorbed(self, run: RunDetails) -> None:
        """A cancellation hit whoever waits for the run, and did not reach it."""

    def deadline_passed(self, run: RunDetails) -> None:
        """The run's deadline passed while it executed; it is being cancelled."""

    def run_stuck(self, run: RunDetails, stack: str) -> None:
        """The run was cancelled and didn't end within the cancel grace. `stack` tells where it hangs."""

    def run_unstuck(self, run: RunDetails) -> None:
        """A stuck run ended after all; its outcome stays what it was."""

    def run_ended(self, run: RunDetails, end: RunEnd) -> None:
        """The run has its outcome."""

    def connection_rejected(self, reason: ConnectionRejection) -> None:
        """A connection wasn't let in."""

    def connection_opened(self, connection: ConnectionDetails) -> None:
        """A connection came in. Called in the context of its handler; its route isn't known yet."""

    def connection_identified(self, connection: ConnectionDetails, route: str, transport: Transport) -> None:
        """The connection's route is known. Called again when a response turns out to be an event stream."""

    def disconnected(self, disconnect: DisconnectDetails) -> None:
        """A connection ended before the server had finished it."""

    def connection_closed(
        self, connection: ConnectionDetails, duration: float, status: int | None, last_byte: float | None
    ) -> None:
        """The handler has returned.

        `duration` is the connection's, in seconds; `status` the response's, where there was one; `last_byte` the
        seconds from the start of an HTTP request to the last byte of its response, None for a WebSocket.
        """

    def flow_ended(self, disconnect: DisconnectDetails, tail: float) -> None:
        """All runs of a disconnect have their outcome and its handler has returned. `tail` is in seconds."""

    def drain_started(self) -> None:
        """The process stops: readiness is red from now on."""

    def drain_ended(self, duration: float, cancelled: int, stuck: list[str]) -> None:
        """The drain took `duration` seconds, cancelled so many runs, and left the named tasks' runs stuck."""

    def closed(self) -> None:
        """The runner accepts no more runs and none executes. Telemetry may be flushed."""


EVENTS = tuple(name for name, value in vars(Observer).items() if callable(value) and not name.startswith("_"))


class Observers(Observer):
    """Many observers as one; one that raises is logged once and disturbs nobody."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)
        self._reported: set[int] = set()
        for event in EVENTS:
            # Instance attributes instead of methods: an event that nobody listens to costs one empty call.
            setattr(self, event, self._fan_out(event))

    def _fan_out(self, event: str) -> Callable[..., None]:
        listeners = [
            (observer, getattr(observer, event))
            for observer in self._observers
            if getattr(type(observer), event, None) is not getattr(Observer, event)
        ]

        def tell(*details: Any) -> None:
            for observer, listener in listeners:
                try:
                    listener(*details)
                except KeyboardInterrupt:
                    raise
                except BaseException:  # noqa: BLE001 - an observer's CancelledError must not reach a run either
                    self._report(observer, event)

        return tell if listeners else _nobody

    def _report(self, observer: Observer, event: str) -> None:
        if id(observer) not in self._reported:
            self._reported.add(id(observer))
            logger.exception(  # noqa: LOG004 - called from the handler in _fan_out
                "observer %s raised in %s; its further failures are not logged",
                type(observer).__qualname__,
                event,
            )


def _nobody(*_details: Any) -> None:
    """Nobody listens to this event."""
