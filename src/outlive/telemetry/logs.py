"""Log events through the standard library's `logging`, so that any set-up of it can render them."""

import asyncio
import logging
import traceback
from collections import Counter
from collections.abc import Callable

from outlive.observer import DisconnectDetails, Observer, RunDetails, RunEnd
from outlive.outcomes import COMPLETED, ConnectionRejection, Outcome

logger = logging.getLogger("outlive")

REJECTION_INTERVAL = 10.0
"""Seconds between two lines about rejected connections: who floods a server must not flood its log too."""

Ids = Callable[[object], dict[str, str]]
"""Gives the `trace_id` and `span_id` of a run or a disconnect, as far as there are any."""


class Logs(Observer):
    """One event at a run's start and end, and one for all that a person at night should know.

    No payload gets in: no arguments, no results, and of an exception its type and its stack but not its message,
    since messages quote data (SQLAlchemy's hold a statement's parameters).
    """

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._rejected: Counter[ConnectionRejection] = Counter()
        self._rejected_told: dict[ConnectionRejection, float] = {}

    def run_started(self, run: RunDetails, wait: float, queued: bool) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            self._log(logging.DEBUG, "run started", run, wait=round(wait, 6))

    def run_ended(self, run: RunDetails, end: RunEnd) -> None:
        completed = end.outcome is COMPLETED
        level = logging.INFO if completed else logging.WARNING
        if not logger.isEnabledFor(level):
            return
        fields: dict[str, object] = {"outcome": str(end.outcome), "wait": round(end.wait, 6)}
        if end.duration is not None:
            fields["duration"] = round(end.duration, 6)
        if end.reason is not None:
            fields["reason"] = str(end.reason)
        if not completed:
            fields["error_type"] = end.error_type
        if end.outcome is Outcome.FAILED and end.error is not None:
            fields["stack"] = "".join(traceback.format_tb(end.error.__traceback__))
        self._log(level, "run ended", run, **fields)

    def run_stuck(self, run: RunDetails, stack: str) -> None:
        self._log(
            logging.ERROR, "run stuck: cancelled, and not ended within the cancel grace", run, stack=stack
        )

    def run_unstuck(self, run: RunDetails) -> None:
        self._log(logging.INFO, "stuck run ended after all", run)

    def cancellation_absorbed(self, run: RunDetails) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            self._log(logging.DEBUG, "cancellation absorbed", run)

    def connection_rejected(self, reason: ConnectionRejection) -> None:
        self._rejected[reason] += 1
        now = asyncio.get_running_loop().time()
        if now - self._rejected_told.get(reason, -REJECTION_INTERVAL) >= REJECTION_INTERVAL:
            self._rejected_told[reason] = now
            logger.warning(
                "connections rejected: %s",
                reason,
                extra={"reason": str(reason), "since_last_line": self._rejected.pop(reason)},
            )

    def disconnected(self, disconnect: DisconnectDetails) -> None:
        logger.debug(
            "disconnect",
            extra={
                "route": disconnect.route,
                "transport": str(disconnect.transport),
                "cause": str(disconnect.cause),
                "connection_duration": round(disconnect.connection_duration, 6),
            },
        )

    def drain_started(self) -> None:
        logger.info("drain started")

    def drain_ended(self, duration: float, cancelled: int, stuck: list[str]) -> None:
        level = logging.WARNING if cancelled or stuck else logging.INFO
        logger.log(
            level,
            "drain ended",
            extra={"duration": round(duration, 6), "cancelled_runs": cancelled, "stuck_runs": stuck},
        )

    def _log(self, level: int, event: str, run: RunDetails, **fields: object) -> None:
        logger.log(
            level, "%s: %s", event, run.task.name, extra={"task": run.task.name, **fields, **self._ids(run)}
        )
