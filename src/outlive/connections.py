"""A connection in flight, and the disconnect flow that its end may start."""

import time
from collections.abc import Callable
from contextvars import ContextVar

from outlive.observer import ConnectionDetails, DisconnectDetails, Observer
from outlive.outcomes import Cause, Transport

UNMATCHED = "unmatched"
"""The route of a connection that no route of the app wanted."""

current: ContextVar["Connection | None"] = ContextVar("outlive_connection", default=None)
"""The connection on whose behalf this code runs. Copied into every run that it submits, and into their runs."""


class Connection:
    """Counts the runs of one connection's disconnect flow and tells when the flow is over.

    The flow holds what is submitted at or after the disconnect, also by those runs themselves. It ends when the
    handler has returned and the last of them has its outcome; what a forgotten background task submits on the
    connection's behalf after that belongs to no flow.
    """

    __slots__ = (
        "_clock",
        "_last_run_ended_at",
        "_observer",
        "_open_runs",
        "_returned",
        "at_end",
        "details",
        "disconnect",
        "route",
        "transport",
    )

    def __init__(
        self, method: str, transport: Transport, observer: Observer, clock: Callable[[], float]
    ) -> None:
        self.details = ConnectionDetails(method, clock())
        self.route = UNMATCHED
        self.transport = transport
        self.disconnect: DisconnectDetails | None = None
        self.at_end: list[Callable[[], object]] = []
        self._observer = observer
        self._clock = clock
        self._open_runs = 0
        self._last_run_ended_at: float | None = None
        self._returned = False

    def disconnected(self, cause: Cause) -> None:
        """Note the disconnect, the first time only: what follows a disconnect is its consequence."""
        if self.disconnect is None:
            now = self._clock()
            self.disconnect = DisconnectDetails(
                self.details,
                cause,
                self.route,
                self.transport,
                now,
                time.time_ns(),
                now - self.details.opened_at,
            )
            self._observer.disconnected(self.disconnect)

    def join_flow(self) -> DisconnectDetails | None:
        """Count one more run in, if there is a flow to belong to."""
        if self.disconnect is None or (self._returned and not self._open_runs):
            return None
        self._open_runs += 1
        return self.disconnect

    def leave_flow(self) -> None:
        """One run of the flow has its outcome."""
        self._open_runs -= 1
        self._last_run_ended_at = self._clock()
        self._end_flow_when_over()

    def handler_returned(self) -> None:
        """The handler has returned or raised, and what it wanted to run at the end is submitted."""
        self._returned = True
        self._end_flow_when_over()

    def _end_flow_when_over(self) -> None:
        # A disconnect that caused no run has no tail to tell.
        if self._returned and not self._open_runs and self.disconnect and self._last_run_ended_at is not None:
            self._observer.flow_ended(self.disconnect, self._last_run_ended_at - self.disconnect.at)
