"""The last disconnect flows, kept in memory for a look from a terminal or a browser without any backend."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import islice
from math import isfinite
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

MOST_OPEN = 10_000
"""So many unfinished flows are followed; of more, those that opened first are forgotten."""
MOST_SPANS = 100
"""So many spans of one flow are kept."""


class FlowBuffer(SpanProcessor):
    """A span processor that keeps the last finished disconnect flows, `kept` of them at the most.

    Only sampled flows get here, and only the spans of this process: not those of the services it called.
    """

    def __init__(self, kept: int) -> None:
        self._open: OrderedDict[int, list[ReadableSpan]] = OrderedDict()
        self._finished: deque[list[ReadableSpan]] = deque(maxlen=kept)
        self.finished = 0
        """How many flows have ended so far, also those that are kept no more."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if span.parent is None and _is_flow(span):
            self._open[span.get_span_context().trace_id] = []
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if context is None:
            return
        spans = self._open.get(context.trace_id)
        if spans is None:
            return
        if span.parent is None:
            # The root goes first whatever the order they ended in.
            spans.insert(0, span)
            self._finished.append(self._open.pop(context.trace_id))
            self.finished += 1
        elif len(spans) < MOST_SPANS:
            spans.append(span)

    def latest(self, most: int) -> list[dict[str, Any]]:
        """Up to `most` flows, newest first, as plain data. Times are in seconds from the disconnect."""
        return [_flow(spans) for spans in islice(reversed(list(self._finished)), most)]

    def find(self, trace_id: str) -> dict[str, Any] | None:
        """The flow with this trace id, if it is kept."""
        kept = (spans for spans in list(self._finished) if _ids(spans[0])[0] == trace_id)
        return next(map(_flow, kept), None)


def _is_flow(span: ReadableSpan) -> bool:
    scope = span.instrumentation_scope
    return scope is not None and scope.name == "outlive" and span.name.startswith("disconnect ")


def _flow(spans: list[ReadableSpan]) -> dict[str, Any]:
    root = spans[0]
    start = root.start_time or 0
    attributes = root.attributes or {}
    return {
        "trace_id": _ids(root)[0],
        "route": attributes.get("http.route"),
        "transport": attributes.get("outlive.transport"),
        "cause": attributes.get("outlive.disconnect.cause"),
        "at": start / 1e9,
        "tail": ((root.end_time or start) - start) / 1e9,
        "spans": [_span(span, start) for span in sorted(spans, key=lambda span: span.start_time or 0)],
    }


def _span(span: ReadableSpan, start: int) -> dict[str, Any]:
    attributes = span.attributes or {}
    began = span.start_time or start
    return {
        "span_id": _ids(span)[1],
        "parent_id": None if span.parent is None else trace.format_span_id(span.parent.span_id),
        "name": span.name,
        "start": (began - start) / 1e9,
        "duration": ((span.end_time or began) - began) / 1e9,
        "error": span.status.status_code is trace.StatusCode.ERROR,
        "attributes": {name: _plain(value) for name, value in attributes.items()},
        "events": [{"name": event.name, "at": (event.timestamp - start) / 1e9} for event in span.events],
    }


def _plain(value: Any) -> Any:
    # JSON has neither NaN nor infinities, and no bytes.
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    if isinstance(value, bytes) or (isinstance(value, float) and not isfinite(value)):
        return str(value)
    return value


def _ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
