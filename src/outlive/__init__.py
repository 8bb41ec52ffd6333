"""Async work that must outlive its connection: finished, bounded and visible."""

from typing import TYPE_CHECKING

from outlive.errors import (
    DeclarationError,
    InstallError,
    OutliveError,
    RunCancelled,
    RunError,
    RunRejected,
    RunTimedOut,
)
from outlive.observer import (
    ConnectionDetails,
    DisconnectDetails,
    Limits,
    Observer,
    RunDetails,
    RunEnd,
    TaskDetails,
)
from outlive.outcomes import Cause, ConnectionRejection, Outcome, Rejection, State, Transport
from outlive.runner import Counts
from outlive.tasks import Run, Task

if TYPE_CHECKING:
    from outlive.fastapi import AfterDisconnect, Outlive

__all__ = [
    "AfterDisconnect",
    "Cause",
    "ConnectionDetails",
    "ConnectionRejection",
    "Counts",
    "DeclarationError",
    "DisconnectDetails",
    "InstallError",
    "Limits",
    "Observer",
    "Outcome",
    "Outlive",
    "OutliveError",
    "Rejection",
    "Run",
    "RunCancelled",
    "RunDetails",
    "RunEnd",
    "RunError",
    "RunRejected",
    "RunTimedOut",
    "State",
    "Task",
    "TaskDetails",
    "Transport",
]


def __getattr__(name: str) -> object:
    # FastAPI takes a quarter of a second to import. The command line's --help, and what only needs the types, don't.
    if name in ("AfterDisconnect", "Outlive"):
        from outlive import fastapi  # noqa: PLC0415 - that is the point

        return getattr(fastapi, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "AfterDisconnect", "Outlive"]
