"""Async work that must outlive its connection: finished, bounded and visible."""

from outlive.errors import (
    DeclarationError,
    InstallError,
    OutliveError,
    RunCancelled,
    RunError,
    RunRejected,
    RunTimedOut,
)
from outlive.fastapi import AfterDisconnect, Outlive
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
