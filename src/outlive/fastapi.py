"""Outlive: one object to declare tasks on and to install on an app."""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Depends, FastAPI
from opentelemetry import trace
from prometheus_client import REGISTRY, CollectorRegistry
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from outlive import connections
from outlive.asgi import ConnectionMiddleware
from outlive.channel import Channel
from outlive.connections import Connection
from outlive.errors import DeclarationError, InstallError
from outlive.live import LivePage
from outlive.observer import Limits, Observer, Observers, TaskDetails, TraceMode
from outlive.outcomes import ConnectionRejection, State
from outlive.pages import check_token, health_page, metrics_page, pages_app, protected, readiness_page
from outlive.runner import Counts, Runner
from outlive.scopes import Scope
from outlive.tasks import Declared, Task, check_limit, check_seconds, declare
from outlive.telemetry.lines import BackgroundLines
from outlive.telemetry.logs import Logs
from outlive.telemetry.metrics import Metrics
from outlive.telemetry.tracing import Tracing

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger("outlive")

MOST_SCOPES = 1_000
"""So many names of scopes are room for any program, and an end for one that makes them from data."""
FLUSH_TIMEOUT = 1.0
"""The part of the drain's budget that is kept for flushing telemetry, in seconds; a tenth of it at the most."""


class Outlive:
    """Runs work that must outlive its connection, and makes it visible.

    Parameters:
        drain_timeout: how long a stop may take from the lifespan's shutdown to the flushed telemetry, in seconds.
        max_running: how many runs execute at once.
        max_pending: how many runs wait for a slot; what comes on top is rejected.
        max_connections: how many WebSockets, streams and requests are open at once, Outlive's own pages aside; what
            comes on top is answered 503, with Retry-After, before the app sees it.
        cancel_grace: how long a cancelled run may take to end before it is stuck and let go, in seconds.
        server_grace: how long the server itself waits for handlers before the lifespan's shutdown begins, in
            seconds (uvicorn's `--timeout-graceful-shutdown`); for the warning about a budget that cannot work.
        stop_grace: after how long the process is killed, in seconds (30 in Kubernetes, 10 in Docker, unless set).
        watch: tell handlers that only send, and plain requests that take long, of a disconnect.
        registry: the Prometheus registry to write to.
        tracer_provider: the OpenTelemetry provider; by default the global one, at the time of the first span.
        observers: further observers, told before the built-in ones.
        telemetry: whether there are metrics, traces and logs; without them, only `observers` are told.
        metrics_path, health_path, readiness_path: where Outlive's own pages are; None leaves one out.
        live: the live page, for a look at runs and disconnect flows in a browser; None: there is none.
        pages: further applications by path, which like Outlive's own count as no connection.
        token: a token that the metrics, the live page and the further pages ask for, as a bearer token or as the
            password of whatever user; without one anybody may read them.
        protect_health: whether health and readiness ask for the token too. Load balancers can't send one, as a rule.

    Raises:
        DeclarationError: a bound, a time or a token that cannot work.
    """

    def __init__(
        self,
        *,
        drain_timeout: float = 20.0,
        max_running: int = 1_000,
        max_pending: int = 10_000,
        max_connections: int = 20_000,
        cancel_grace: float = 1.0,
        server_grace: float = 0.0,
        stop_grace: float | None = None,
        watch: bool = True,
        registry: CollectorRegistry = REGISTRY,
        tracer_provider: trace.TracerProvider | None = None,
        observers: Iterable[Observer] = (),
        telemetry: bool = True,
        metrics_path: str | None = "/metrics",
        health_path: str | None = "/healthz",
        readiness_path: str | None = "/readyz",
        live: LivePage | None = None,
        pages: Mapping[str, ASGIApp] | None = None,
        token: str | None = None,
        protect_health: bool = False,
    ) -> None:
        check_seconds("drain_timeout", drain_timeout)
        check_seconds("cancel_grace", cancel_grace)
        self._flush_timeout = min(FLUSH_TIMEOUT, drain_timeout / 10)
        if drain_timeout <= cancel_grace + self._flush_timeout:
            raise DeclarationError(
                f"a drain_timeout of {drain_timeout:g} s leaves no time for runs: the cancel_grace takes "
                f"{cancel_grace:g} s of it, and flushing telemetry {self._flush_timeout:g} s"
            )
        check_limit("max_connections", max_connections, 1)
        if token is not None:
            check_token(token)
        elif protect_health:
            raise DeclarationError("protect_health without a token protects nothing: set a token too")
        built_in: list[Observer] = [] if live is None else [live]
        if telemetry:
            tracing = Tracing(tracer_provider)
            # The tracing comes last: the others ask it for a run's ids while the run's span is still there.
            built_in = [Metrics(registry, tracing.exemplar), Logs(tracing.ids), *built_in, tracing]
        self._observer = Observers([*observers, *built_in])
        self._runner = Runner(
            Limits(max_running, max_pending), cancel_grace=cancel_grace, observer=self._observer
        )
        self._drain_timeout = drain_timeout
        self._server_grace = server_grace
        self._stop_grace = stop_grace
        self._watch = watch
        self._channels: set[Channel] = set()
        self._max_connections = max_connections
        self._tracer_provider = tracer_provider
        self._scopes: dict[str, Declared] = {}
        self._installed = False
        self._started_by_lifespan = False
        self._in_lifespan = False
        self._wrapped_lifespan: Callable[[Any], Any] | None = None
        self._live = live
        self._pages = dict(pages or {})
        if live is not None:
            patience = drain_timeout - self._flush_timeout - cancel_grace
            self._pages |= live.attach(self._runner, registry, self.begin_drain, patience)
        open_paths = set() if protect_health else {health_path, readiness_path}
        for path, page in (
            (metrics_path, metrics_page(registry)),
            (health_path, health_page()),
            (readiness_path, readiness_page(lambda: self.state)),
        ):
            if path is not None:
                self._pages[path] = page
        if token is not None:
            for path in self._pages.keys() - open_paths:
                self._pages[path] = protected(self._pages[path], token)

    @property
    def state(self) -> State:
        """Open, draining or closed."""
        return self._runner.state

    @property
    def counts(self) -> Counts:
        """What became of all runs so far."""
        return self._runner.counts

    @property
    def tasks(self) -> list[TaskDetails]:
        """Every task and every scope used so far, in the order of declaration."""
        return [declared.details for declared in self._runner.declared]

    def task(
        self,
        *,
        timeout: float,
        name: str | None = None,
        max_wait: float | None = None,
        max_running: int | None = None,
        max_pending: int | None = None,
        trace: TraceMode = "auto",
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, R]]:
        """Declare a task.

        Parameters:
            timeout: how long a run may execute, in seconds; required and finite.
            name: the name in metrics, spans and logs; the function's by default.
            max_wait: how long a run may wait for a slot, in seconds; the timeout by default.
            max_running: how many runs of this task execute at once; only the runner's own bound by default.
            max_pending: how many runs of this task wait for a slot; likewise.
            trace: the parent of a run's span. "auto": the disconnect flow after a disconnect, the current span
                before; "child": always the current span; "link": a trace of its own, linked to the current span.

        Raises:
            DeclarationError: the function isn't async, the name is taken, or a time or limit cannot work.

        Example:
            >>> outlive = Outlive(registry=CollectorRegistry())
            >>> @outlive.task(timeout=5.0)
            ... async def save_transcript(room: str, lines: list[str]) -> None: ...
            >>> save_transcript
            <Task 'save_transcript' timeout=5s>
        """

        def decorate(function: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, R]:
            details = declare(
                getattr(function, "__name__", "") if name is None else name,
                timeout=timeout,
                max_wait=max_wait,
                max_running=max_running,
                max_pending=max_pending,
                trace=trace,
            )
            declared = Task(self._runner, function, details)
            self._runner.declare(declared)
            return declared

        return decorate

    def scope(self, name: str, *, timeout: float) -> Scope:
        """Shield a block in place, for at most `timeout` seconds: `async with outlive.scope("flush", timeout=2.0):`.

        The block runs in its caller's task, so a native `Task.cancel()` still pierces it: see `Scope`, which also
        tells what entering and leaving raise. The first use of a name declares it.

        Raises:
            DeclarationError: the name is a task's, had another timeout before, or is one too many.
        """
        declared = self._scopes.get(name)
        if declared is None:
            if len(self._scopes) >= MOST_SCOPES:
                raise DeclarationError(
                    f"{name!r} would be scope number {MOST_SCOPES + 1}: name scopes in code, not from data"
                )
            declared = Declared(declare(name, timeout=timeout))
            self._runner.declare(declared)
            self._scopes[name] = declared
        elif declared.details.timeout != timeout:
            raise DeclarationError(
                f"scope {name!r} has a timeout of {declared.details.timeout:g} s elsewhere, not {timeout:g} s"
            )
        return Scope(self._runner, declared)

    def install(self, app: FastAPI, *, pages: bool = True) -> None:
        """Put Outlive into an app: beside its own lifespan, around its middleware, and with pages of its own.

        The order of this and of other `add_middleware` calls doesn't matter: Outlive is the outermost, inside the
        app's handling of server errors and any tracing around it.

        Parameters:
            app: the app.
            pages: whether Outlive's pages are on the app; if not, serve `pages_app()` at another address.

        Raises:
            InstallError: the app has been started, or has an Outlive already, or this Outlive has an app.
        """
        if hasattr(app.state, "outlive"):
            raise InstallError("this app has an Outlive already; install one, once")
        if app.middleware_stack is not None:
            raise InstallError("this app has been started; call outlive.install(app) where the app is made")
        if self._installed:
            raise InstallError("this Outlive is installed on another app; make one for each app")
        app.state.outlive = self
        self._installed = True
        self._wrap_lifespan(app)
        middleware = Middleware(
            ConnectionMiddleware,
            runner=self._runner,
            observer=self._observer,
            routes=lambda: app.routes,
            pages=self._pages if pages else {},
            before=self._open_without_lifespan,
            channels=self._channels,
            watch=self._watch,
            max_connections=self._max_connections,
        )
        build = app.build_middleware_stack

        def build_with_outlive_outermost() -> ASGIApp:
            others = [other for other in app.user_middleware if other is not middleware]
            app.user_middleware = [middleware, *others]
            # A router included since has put its lifespan around; its resources must be there for the runs too.
            self._wrap_lifespan(app)
            return build()

        app.build_middleware_stack = build_with_outlive_outermost  # type: ignore[method-assign]

    def connection_rejected(self, reason: ConnectionRejection) -> None:
        """Count and log a connection that the app itself turned away, as Outlive does over `max_connections`.

        Call it on the event loop. In the log, a burst is one line.
        """
        self._observer.connection_rejected(reason)

    def pages_app(self) -> ASGIApp:
        """Outlive's pages as an ASGI app of their own, for an address that the public can't reach.

        Serve it on the same event loop or on any other of this process, without a lifespan, until the drain has
        ended (`outlive serve` does, with PAGES_PORT).

        Example:
            >>> outlive = Outlive(registry=CollectorRegistry(), token="a-token-for-prometheus")
            >>> outlive.install(FastAPI(), pages=False)
            >>> pages = uvicorn.Server(uvicorn.Config(outlive.pages_app(), port=9000, lifespan="off"))
        """
        return pages_app(self._pages)

    def begin_drain(self) -> None:
        """Turn readiness red now, ahead of the lifespan's shutdown.

        Servers run that only when their connections have ended; a load balancer wants to know before. Call it on
        the event loop, from where the stop becomes known (`outlive serve` does). Runs are still accepted.
        """
        self._runner.begin_drain()

    def warnings(self) -> list[str]:
        """What in the budgets cannot work, a sentence each."""
        found = []
        if self._stop_grace is not None:
            needed = self._drain_timeout + self._server_grace
            if needed > self._stop_grace:
                found.append(
                    f"a stop may take {needed:g} s (server_grace {self._server_grace:g} s + drain_timeout "
                    f"{self._drain_timeout:g} s) but the process is killed after {self._stop_grace:g} s (stop_grace)"
                )
        found.extend(
            f"task {task.name!r} may run for {task.timeout:g} s, but a drain cancels what is left after "
            f"{self._drain_timeout:g} s"
            for task in self.tasks
            if task.timeout > self._drain_timeout
        )
        return found

    def _wrap_lifespan(self, app: FastAPI) -> None:
        if app.router.lifespan_context is not self._wrapped_lifespan:
            self._wrapped_lifespan = partial(self._lifespan, app.router.lifespan_context)
            app.router.lifespan_context = self._wrapped_lifespan

    @asynccontextmanager
    async def _lifespan(self, inner: Callable[[Any], Any], app: Any) -> AsyncGenerator[Any]:
        if self._in_lifespan:
            async with inner(app) as state:
                yield state
            return
        self._started_by_lifespan = self._in_lifespan = True
        self._open()
        try:
            # Inside the app's own lifespan, so that its clients and pools are there until the last run has ended.
            async with inner(app) as state:
                try:
                    yield state
                finally:
                    # By ASGI's lifespan protocol (version 2.0, "shutdown"), every connection is closed by now.
                    for channel in list(self._channels):
                        channel.server_stopped()
                    # Those who looked on took their time from the drain, not on top of it.
                    held = 0.0 if self._live is None else self._live.held
                    await self._runner.drain(self._drain_timeout - self._flush_timeout - held)
        finally:
            self._in_lifespan = False
            self._runner.close()
            self._observer.closed()
            counts = self.counts
            # The account of the process, where whoever finds its last words looks for it.
            logger.info(
                "closed",
                extra={
                    "submitted": counts.submitted,
                    "outcomes": {str(outcome): number for outcome, number in counts.outcomes.items()},
                    "stuck": counts.stuck,
                },
            )
            await self._flush()

    def _open(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise InstallError(
                "Outlive works on asyncio only; run the app on an asyncio event loop"
            ) from None
        for warning in self.warnings():
            logger.warning("budget: %s", warning)
        self._runner.open()

    def _open_without_lifespan(self) -> None:
        """Some servers run no lifespan (daphne, a TestClient outside `with`); their apps must work all the same."""
        if self._started_by_lifespan:
            return
        if self.state is State.CLOSED:
            logger.warning("the server runs no lifespan: runs work, but nothing waits for them at the stop")
        if self.state is State.CLOSED or not self._runner.is_on(asyncio.get_running_loop()):
            self._open()

    async def _flush(self) -> None:
        provider = self._tracer_provider or trace.get_tracer_provider()
        force_flush = getattr(provider, "force_flush", None)
        # Servers end their process by the signal that stopped them, so nothing else would write the last lines.
        lines = [handler for handler in logging.getLogger().handlers if isinstance(handler, BackgroundLines)]
        if force_flush is None and not lines:
            return
        loop = asyncio.get_running_loop()
        flushed = asyncio.Event()

        def flush() -> None:
            try:
                if force_flush is not None:
                    force_flush(int(self._flush_timeout * 1000))
                for handler in lines:
                    handler.flush()
            except Exception:
                logger.exception("telemetry wasn't flushed")
            with suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(flushed.set)

        # A daemon thread: an exporter that hangs must hold up neither the event loop nor the process' end.
        threading.Thread(target=flush, name="outlive flush", daemon=True).start()
        try:
            async with asyncio.timeout(self._flush_timeout):
                await flushed.wait()
        except TimeoutError:
            logger.warning("telemetry wasn't flushed within %g s", self._flush_timeout)


class AfterDisconnectTasks:
    """Tasks to submit when the connection has ended."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add_task(self, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Submit the task, with these arguments, when the connection has ended and its handler has returned.

        That holds for any end: the client left, the server stops, the handler raised, or all went well. The tasks
        are submitted in the order added, each on its own: one that fails or is rejected disturbs none after it.

        Raises:
            TypeError: `task` isn't a declared task.
        """
        if not isinstance(task, Task):
            raise TypeError(f"add_task takes a task declared with @outlive.task(...), not {task!r}")
        self._connection.at_end.append(partial(task.submit, *args, **kwargs))


async def _after_disconnect() -> AfterDisconnectTasks:
    connection = connections.current.get()
    if connection is None:
        raise InstallError("AfterDisconnect needs an app with Outlive: call outlive.install(app)")
    return AfterDisconnectTasks(connection)


AfterDisconnect = Annotated[AfterDisconnectTasks, Depends(_after_disconnect)]
"""Annotate a handler's parameter with it, as with FastAPI's BackgroundTasks: `after: AfterDisconnect`."""
