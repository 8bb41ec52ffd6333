"""Trace context from clients that nobody vouches for: linked to, not continued."""

from opentelemetry import trace
from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.sdk.trace import Span, SpanProcessor
from opentelemetry.trace import SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_REMOTE = create_key("outlive-remote-span")


class UntrustedTraceContext(TextMapPropagator):
    """W3C trace context (https://www.w3.org/TR/trace-context/) at the edge of a system.

    A client's `traceparent` could put its requests into any trace and force the sampling, so a request starts a trace
    of its own, linked to what the client told; a client's baggage and `tracestate` are dropped. What this process calls is told
    its trace as ever. Needs `LinkRemote` among the provider's span processors.
    """

    def __init__(self) -> None:
        self._w3c = TraceContextTextMapPropagator()

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """Take the client's span as one to link to."""
        # Without `tracestate`: it is free text, which would go into the link, and into a warning where it is malformed.
        told = {"traceparent": getter.get(carrier, "traceparent") or []}
        remote = trace.get_current_span(self._w3c.extract(told, Context())).get_span_context()
        context = Context() if context is None else context
        return set_value(_REMOTE, remote, context) if remote.is_valid else context

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Tell the current span."""
        self._w3c.inject(carrier, context, setter)

    @property
    def fields(self) -> set[str]:
        """The headers that are read and written."""
        return self._w3c.fields


class LinkRemote(SpanProcessor):
    """Links a trace's first span to the span that an untrusted client told."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Add the link."""
        remote = get_value(_REMOTE, parent_context)
        if span.parent is None and isinstance(remote, SpanContext):
            span.add_link(remote)
