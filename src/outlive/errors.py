"""What can go wrong, for whoever declares a task, installs Outlive or waits for a run."""

from outlive.outcomes import Rejection


class OutliveError(Exception):
    """Every error of Outlive's own is one of these."""


class DeclarationError(OutliveError):
    """A task, a scope or a limit was declared in a way that cannot work."""


class InstallError(OutliveError):
    """Outlive cannot be installed on this app, or cannot start here."""


class RunError(OutliveError):
    """A run that was waited for ended without a result of its own."""

    def __init__(self, task: str, message: str) -> None:
        super().__init__(f"task {task!r}: {message}")
        self.task = task


class RunTimedOut(RunError, TimeoutError):  # noqa: N818 - named after the outcome, as the public API promises
    """The run's deadline passed, or it waited for a slot for longer than its `max_wait`."""


class RunCancelled(RunError):  # noqa: N818 - as above
    """The run was cancelled: by `run.cancel()`, by the end of a drain, or by the work itself."""


class RunRejected(RunError):  # noqa: N818 - as above
    """The run never started: a bound was reached, or the process isn't open."""

    def __init__(self, task: str, reason: Rejection) -> None:
        super().__init__(task, f"rejected ({reason})")
        self.reason = reason
