"""Shielded blocks in place, by AnyIO's cancel scope."""

import math
from types import TracebackType

import anyio

from outlive.errors import RunCancelled, RunRejected, RunTimedOut
from outlive.outcomes import Outcome
from outlive.runner import Runner
from outlive.tasks import Declared, Run


class Scope:
    """A block that an AnyIO cancellation doesn't reach, with a deadline, one outcome and the telemetry of a run.

    It runs in its caller's own task. So a native `Task.cancel()`, such as a server's graceful timeout makes, still
    pierces it, and the block is then counted `cancelled`. Where that must not happen, use a task.

    Raises:
        RunTimedOut: the deadline passed.
        RunCancelled: a drain cancelled the block.
        RunRejected: at entry; a bound is reached, or the process isn't open. The block isn't executed.
    """

    def __init__(self, runner: Runner, declared: Declared) -> None:
        self._runner = runner
        self._declared = declared
        self._shield: anyio.CancelScope | None = None
        self._run: Run[None] | None = None

    async def __aenter__(self) -> None:
        self._shield = shield = anyio.CancelScope(shield=True)
        self._run = run = self._runner.enter(self._declared, shield.cancel)
        if run.outcome is Outcome.REJECTED:
            assert run._reason is not None
            raise RunRejected(run.name, run._reason)
        shield.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        run = self._run
        assert run is not None
        assert self._shield is not None
        try:
            swallowed = bool(self._shield.__exit__(kind, error, trace))
        finally:
            if anyio.current_effective_deadline() == -math.inf:
                # The scope around is cancelled: without the shield, the block would have died at its next await.
                self._runner.absorbed(run)
            self._runner.leave(run, error)
        if run.outcome is Outcome.TIMED_OUT and (swallowed or error is None):
            raise RunTimedOut(run.name, f"timed out after {self._declared.details.timeout:g} s")
        if run.outcome is Outcome.CANCELLED and (swallowed or error is None):
            raise RunCancelled(run.name, "cancelled")
        return swallowed
