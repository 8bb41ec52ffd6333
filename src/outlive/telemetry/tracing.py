"""OpenTelemetry spans: each disconnect flow is a small trace of its own."""

from importlib.metadata import version
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanContext, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from outlive.observer import ConnectionDetails, DisconnectDetails, Observer, RunDetails, RunEnd
from outlive.outcomes import COMPLETED


class Tracing(Observer):
    """One span a run, and one root span for the disconnect flow that runs after a disconnect belong to.

    A run's span is made current in the run's own context, and that context ends with the run: nothing is attached in
    one task and detached in another.
    """

    def __init__(self, provider: trace.TracerProvider | None) -> None:
        self._tracer = trace.get_tracer("outlive", version("outlive"), provider)
        self._runs: dict[RunDetails, Span] = {}
        self._connections: dict[ConnectionDetails, Span] = {}
        self._flows: dict[DisconnectDetails, Span] = {}
        self._absorbed: dict[RunDetails, int] = {}
        # What was current around a scope's block, until the block is left; a stuck one is left after its end.
        self._around: dict[RunDetails, tuple[Span, otel_context.Context]] = {}
        self._around_stuck: dict[RunDetails, tuple[Span, otel_context.Context]] = {}

    def exemplar(self, what: object) -> SpanContext | None:
        """A run's, a connection's or a disconnect flow's span, if it is sampled and hasn't ended."""
        span = self._span(what)
        if span is None or not (span.is_recording() or isinstance(what, ConnectionDetails)):
            return None
        context = span.get_span_context()
        return context if context.trace_flags.sampled else None

    def ids(self, what: object) -> dict[str, str]:
        """The ids of that span for logs: sampled or not, and empty where there is no trace."""
        span = self._span(what)
        context = None if span is None else span.get_span_context()
        return ids(context) if context is not None and context.is_valid else {}

    def _span(self, what: Any) -> Span | None:
        return self._runs.get(what) or self._flows.get(what) or self._connections.get(what)

    def connection_opened(self, connection: ConnectionDetails) -> None:
        span = trace.get_current_span()
        if span is not INVALID_SPAN:
            self._connections[connection] = span

    def connection_closed(
        self, connection: ConnectionDetails, duration: float, status: int | None, last_byte: float | None
    ) -> None:
        self._connections.pop(connection, None)

    def run_submitted(self, run: RunDetails) -> None:
        context = run.context
        surroundings = (
            otel_context.get_current() if context is None else context.run(otel_context.get_current)
        )
        within, links = surroundings, None
        if run.task.trace == "link":
            links = _links(trace.get_current_span(surroundings))
            within = trace.set_span_in_context(INVALID_SPAN, surroundings)
        elif run.flow is not None and run.task.trace == "auto":
            # A run that another run of the same flow submitted is its child; the first ones are the root's.
            root = self._flow(run.flow)
            caller = trace.get_current_span(surroundings)
            if caller.get_span_context().trace_id != root.get_span_context().trace_id:
                within = trace.set_span_in_context(root, surroundings)
        span = self._tracer.start_span(
            run.task.name,
            within,
            links=links,
            attributes={"outlive.task": run.task.name, "outlive.timeout": run.task.timeout},
        )
        self._runs[run] = span
        inside = trace.set_span_in_context(span, surroundings)
        if context is None:
            self._around[run] = (span, surroundings)
            otel_context.attach(inside)
        else:
            context.run(otel_context.attach, inside)

    def _flow(self, disconnect: DisconnectDetails) -> Span:
        root = self._flows.get(disconnect)
        if root is None:
            connection = self._connections.get(disconnect.connection, INVALID_SPAN)
            root = self._flows[disconnect] = self._tracer.start_span(
                f"disconnect {disconnect.route}",
                otel_context.Context(),
                links=_links(connection),
                start_time=disconnect.at_ns,
                attributes={
                    "http.route": disconnect.route,
                    "outlive.transport": disconnect.transport,
                    "outlive.disconnect.cause": disconnect.cause,
                    "outlive.connection.duration": disconnect.connection_duration,
                },
            )
            if connection.is_recording():
                connection.add_event(
                    "outlive.disconnect",
                    {
                        "outlive.disconnect.cause": disconnect.cause,
                        "outlive.flow.trace_id": ids(root.get_span_context())["trace_id"],
                    },
                )
        return root

    def cancellation_absorbed(self, run: RunDetails) -> None:
        self._runs[run].add_event("outlive.cancellation_absorbed")
        self._absorbed[run] = self._absorbed.get(run, 0) + 1

    def deadline_passed(self, run: RunDetails) -> None:
        self._runs[run].add_event("outlive.deadline")

    def drain_started(self) -> None:
        for span in self._runs.values():
            span.add_event("outlive.drain")

    def run_stuck(self, run: RunDetails, stack: str) -> None:
        if run in self._around:
            self._around_stuck[run] = self._around.pop(run)

    def run_unstuck(self, run: RunDetails) -> None:
        _leave(self._around_stuck.pop(run, None))

    def run_ended(self, run: RunDetails, end: RunEnd) -> None:
        span = self._runs.pop(run)
        absorbed = self._absorbed.pop(run, 0) if self._absorbed else 0
        if span.is_recording():
            attributes: dict[str, AttributeValue] = {
                "outlive.outcome": end.outcome,
                "outlive.wait": end.wait,
                "outlive.absorbed_cancellations": absorbed,
            }
            if end.outcome is not COMPLETED:
                attributes["error.type"] = end.error_type
                span.set_status(Status(StatusCode.ERROR))
            span.set_attributes(attributes)
            span.end()
        if run.context is None:
            _leave(self._around.pop(run, None))

    def flow_ended(self, disconnect: DisconnectDetails, tail: float) -> None:
        root = self._flows.pop(disconnect, None)
        if root is not None:
            root.end(disconnect.at_ns + int(tail * 1e9))


def _leave(around: tuple[Span, otel_context.Context] | None) -> None:
    # Not a detach by token: a scope in a generator may be left in another context than it was entered in, and there
    # something else is current.
    if around is not None and trace.get_current_span() is around[0]:
        otel_context.attach(around[1])


def ids(context: SpanContext) -> dict[str, str]:
    """The ids as logs and exemplars carry them: lower-case hexadecimal."""
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


def _links(span: Span) -> list[Link]:
    context = span.get_span_context()
    return [Link(context)] if context.is_valid else []
