"""What a process of the matrix tells of itself: runs, connections, disconnects, spans and asyncio tasks."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from fastapi.responses import JSONResponse
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Receive, Scope, Send

from outlive import DisconnectDetails, Observer, Outlive
from outlive_conformance.surroundings import Surroundings

STATE_PATH = "/state"


class Spans(SpanProcessor):
    """Spans that are open, and spans that have ended."""

    def __init__(self) -> None:
        self._open: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._ended: list[dict[str, Any]] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the SDK's
        """Note a start."""
        number = span.get_span_context().span_id
        self._open[number] = self._names[number] = span.name

    def on_end(self, span: ReadableSpan) -> None:
        """Note an end."""
        context = span.get_span_context()
        assert context is not None
        del self._open[context.span_id]
        self._ended.append(
            {
                "name": span.name,
                "parent": None if span.parent is None else self._names[span.parent.span_id],
                "outcome": (span.attributes or {}).get("outlive.outcome"),
            }
        )

    def told(self) -> dict[str, Any]:
        """Both, as plain data."""
        return {"open": sorted(self._open.values()), "ended": self._ended}


class Watching(Observer):
    """Notes each disconnect, and the state of the process when it has closed."""

    def __init__(self, surroundings: Surroundings, registry: CollectorRegistry, spans: Spans) -> None:
        self._surroundings = surroundings
        self._registry = registry
        self._spans = spans
        self._disconnects: list[dict[str, Any]] = []
        self.outlive: Outlive

    def disconnected(self, disconnect: DisconnectDetails) -> None:
        """Note it, on the clock that all processes of a machine share."""
        self._disconnects.append(
            {"route": disconnect.route, "cause": str(disconnect.cause), "at": time.monotonic()}
        )

    def closed(self) -> None:
        """Write the last state down, all or nothing."""
        file = Path(self._surroundings.folder) / f"closed-{os.getpid()}"
        file.with_suffix(".part").write_text(json.dumps(self.state()))
        file.with_suffix(".part").rename(file.with_suffix(".json"))

    def state(self) -> dict[str, Any]:
        """What there is: runs, connections, spans, and the asyncio tasks besides the one that asks."""
        counts = self.outlive.counts
        samples = [sample for family in self._registry.collect() for sample in family.samples]
        runs: dict[str, dict[str, int]] = {}
        for sample in samples:
            if sample.name == "outlive_runs_total" and sample.value:
                runs.setdefault(sample.labels["task"], {})[sample.labels["outcome"]] = int(sample.value)
        return {
            "submitted": counts.submitted,
            "outcomes": sum(counts.outcomes.values()),
            "running": counts.running,
            "pending": counts.pending,
            "stuck": counts.stuck,
            "runs": runs,
            "connections": sum(sample.value for sample in samples if sample.name == "outlive_connections"),
            "disconnects": self._disconnects,
            "spans": self._spans.told(),
            "tasks": sorted(
                getattr(task.get_coro(), "__qualname__", task.get_name())
                for task in asyncio.all_tasks()
                if task is not asyncio.current_task()
            ),
        }

    def page(self) -> ASGIApp:
        """The state, over HTTP."""

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            await JSONResponse(self.state())(scope, receive, send)

        return respond
