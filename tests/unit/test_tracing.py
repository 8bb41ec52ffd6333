"""Traces: one disconnect flow is one small trace that a person can read."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanContext, SpanKind, StatusCode
from prometheus_client import CollectorRegistry

from outlive import AfterDisconnect, Outcome, Outlive, RunTimedOut, Task
from outlive.telemetry.propagation import LinkRemote, UntrustedTraceContext

LEFT = {"type": "websocket.disconnect", "code": 1000, "reason": ""}
ROUTE = "/rooms/{room}"


class Recorded:
    """A tracer provider that keeps what it is given."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def servers(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.kind is SpanKind.SERVER]

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def outlive(registry: CollectorRegistry, recorded: Recorded) -> Outlive:
    return Outlive(registry=registry, tracer_provider=recorded.provider)


@pytest.fixture(autouse=True)
def nothing_complains(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No observer may raise, and no context may fail to detach."""
    yield
    for record in caplog.get_records("call"):
        assert "Failed to detach" not in record.getMessage()
        assert not record.getMessage().startswith("observer ")


def context_of(span: ReadableSpan) -> SpanContext:
    context: SpanContext | None = span.context
    assert context is not None
    return context


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def room_app(outlive: Outlive, at_end: Any) -> FastAPI:
    """An app with a room, whose handler calls this when the client has left."""
    app = FastAPI()
    outlive.install(app)

    @app.websocket(ROUTE)
    async def room(ws: WebSocket, room: str) -> None:
        await ws.accept()
        try:
            async for _ in ws.iter_text():
                pass
        finally:
            result = at_end()
            if result is not None:
                await result

    return app


def leave(task: Task[[], None]) -> Callable[[], None]:
    """Submit the task and wait for nothing."""

    def submit() -> None:
        task.submit()

    return submit


async def visit(wire: Any, app: FastAPI, tracer: trace.Tracer | None = None) -> None:
    """Come to the room and leave it, within the server's span if there is a tracer."""

    async def come_and_go() -> None:
        connection = wire(app, "websocket", "/rooms/a")
        await asyncio.sleep(2)
        connection.put(LEFT)
        await connection.handler

    if tracer is None:
        await come_and_go()
    else:
        with tracer.start_as_current_span("server"):
            await come_and_go()


# The flow


def test_a_disconnect_flow_is_a_trace_of_its_own_linked_to_the_connection(
    run: Any, outlive: Outlive, recorded: Recorded, wire: Any
) -> None:
    @outlive.task(timeout=5.0)
    async def save() -> None: ...

    async def main() -> None:
        await visit(wire, room_app(outlive, leave(save)), recorded.tracer)
        await asyncio.sleep(1)

    run(main())
    server, root, saved = (recorded.one(name) for name in ("server", f"disconnect {ROUTE}", "save"))
    assert len(recorded.spans) == 3
    assert root.parent is None
    assert [link.context.span_id for link in root.links] == [context_of(server).span_id]
    assert context_of(root).trace_id != context_of(server).trace_id
    assert context_of(saved).trace_id == context_of(root).trace_id
    assert parent_of(saved) == context_of(root).span_id
    (event,) = server.events
    assert event.name == "outlive.disconnect"
    assert dict(event.attributes or {}) == {
        "outlive.disconnect.cause": "client_closed",
        "outlive.flow.trace_id": trace.format_trace_id(context_of(root).trace_id),
    }


def test_the_attributes_of_a_flow_and_of_its_runs(
    run: Any, outlive: Outlive, recorded: Recorded, wire: Any
) -> None:
    @outlive.task(timeout=5.0)
    async def save() -> None: ...

    async def main() -> None:
        await visit(wire, room_app(outlive, leave(save)))
        await asyncio.sleep(1)

    run(main())
    root, saved = recorded.one(f"disconnect {ROUTE}"), recorded.one("save")
    assert dict(root.attributes or {}) == {
        "http.route": ROUTE,
        "outlive.transport": "websocket",
        "outlive.disconnect.cause": "client_closed",
        "outlive.connection.duration": pytest.approx(2, abs=1e-3),
    }
    assert dict(saved.attributes or {}) == {
        "outlive.task": "save",
        "outlive.timeout": 5.0,
        "outlive.outcome": "completed",
        "outlive.wait": 0.0,
        "outlive.absorbed_cancellations": 0,
    }


def test_the_root_lasts_until_its_last_run_has_ended(
    run: Any, outlive: Outlive, recorded: Recorded, wire: Any
) -> None:
    @outlive.task(timeout=50.0)
    async def save(seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def main() -> None:
        def twice() -> None:
            save.submit(1)
            save.submit(20)

        await visit(wire, room_app(outlive, twice))
        await asyncio.sleep(19)
        assert len(recorded.named("save")) == 1
        assert not recorded.named(f"disconnect {ROUTE}")
        await asyncio.sleep(2)

    run(main())
    root = recorded.one(f"disconnect {ROUTE}")
    assert root.end_time is not None
    assert root.start_time is not None
    assert (root.end_time - root.start_time) / 1e9 == pytest.approx(20, abs=0.01)


def test_the_root_waits_for_the_handler_as_well(
    run: Any, outlive: Outlive, recorded: Recorded, wire: Any
) -> None:
    @outlive.task(timeout=50.0)
    async def save() -> None: ...

    async def twice() -> None:
        await save()
        await asyncio.sleep(5)
        await save()

    async def main() -> None:
        await visit(wire, room_app(outlive, twice))

    run(main())
    root = recorded.one(f"disconnect {ROUTE}")
    assert [parent_of(span) for span in recorded.named("save")] == [context_of(root).span_id] * 2


def test_a_disconnect_without_a_run_makes_no_trace(
    run: Any, outlive: Outlive, recorded: Recorded, registry: CollectorRegistry, wire: Any
) -> None:
    run(visit(wire, room_app(outlive, lambda: None)))
    assert recorded.spans == []
    labels = {"route": ROUTE, "transport": "websocket", "cause": "client_closed"}
    assert registry.get_sample_value("outlive_disconnects_total", labels) == 1


def test_a_run_of_a_run_is_its_child(run: Any, outlive: Outlive, recorded: Recorded, wire: Any) -> None:
    @outlive.task(timeout=5.0)
    async def bill() -> None:
        await asyncio.sleep(1)

    @outlive.task(timeout=5.0)
    async def save() -> None:
        bill.submit()

    async def main() -> None:
        await visit(wire, room_app(outlive, leave(save)))
        await asyncio.sleep(5)

    run(main())
    root, saved, billed = (recorded.one(name) for name in (f"disconnect {ROUTE}", "save", "bill"))
    assert parent_of(saved) == context_of(root).span_id
    assert parent_of(billed) == context_of(saved).span_id
    # It outlived the run that asked for it, and the root outlived it.
    assert root is recorded.spans[-1]


def test_what_a_run_does_is_under_its_span(run: Any, outlive: Outlive, recorded: Recorded, wire: Any) -> None:
    @outlive.task(timeout=5.0)
    async def save() -> None:
        with recorded.tracer.start_as_current_span("POST"):
            await asyncio.sleep(0)

    async def main() -> None:
        await visit(wire, room_app(outlive, save), recorded.tracer)

    run(main())
    assert parent_of(recorded.one("POST")) == context_of(recorded.one("save")).span_id


def test_tasks_that_run_after_a_disconnect_belong_to_the_flow(
    run: Any, outlive: Outlive, recorded: Recorded, wire: Any
) -> None:
    @outlive.task(timeout=5.0)
    async def save() -> None: ...

    app = FastAPI()
    outlive.install(app)

    @app.websocket(ROUTE)
    async def room(ws: WebSocket, room: str, after: AfterDisconnect) -> None:
        after.add_task(save)
        await ws.accept()
        async for _ in ws.iter_text():
            pass

    async def main() -> None:
        await visit(wire, app, recorded.tracer)
        await asyncio.sleep(1)

    run(main())
    root = recorded.one(f"disconnect {ROUTE}")
    assert parent_of(recorded.one("save")) == context_of(root).span_id
    assert recorded.one("server").events


# Where a run's span hangs


def test_on_an_open_connection_a_run_is_a_child_of_the_current_span(
    run: Any, outlive: Outlive, recorded: Recorded, wire: Any
) -> None:
    @outlive.task(timeout=5.0)
    async def save() -> None: ...

    app = FastAPI()
    outlive.install(app)

    @app.get("/")
    async def root() -> None:
        await save()

    async def main() -> None:
        with recorded.tracer.start_as_current_span("server"):
            await wire(app, "http", "/").handler

    run(main())
    assert parent_of(recorded.one("save")) == context_of(recorded.one("server")).span_id
    assert len(recorded.spans) == 2


def test_trace_child_is_always_a_child_of_the_current_span(
    run: Any, outlive: Outlive, recorded: Recorded, wire: Any
) -> None:
    @outlive.task(timeout=5.0, trace="child")
    async def save() -> None: ...

    run(visit(wire, room_app(outlive, save), recorded.tracer))
    assert parent_of(recorded.one("save")) == context_of(recorded.one("server")).span_id


def test_trace_link_is_always_a_trace_of_its_own(
    run: Any, outlive: Outlive, recorded: Recorded, wire: Any
) -> None:
    @outlive.task(timeout=5.0, trace="link")
    async def save() -> None: ...

    run(visit(wire, room_app(outlive, save), recorded.tracer))
    server, saved = recorded.one("server"), recorded.one("save")
    assert saved.parent is None
    assert context_of(saved).trace_id != context_of(server).trace_id
    assert [link.context for link in saved.links] == [context_of(server)]


@pytest.mark.parametrize("mode", ["child", "link"])
def test_a_flow_whose_runs_all_hang_elsewhere_has_no_root_of_its_own(
    run: Any,
    outlive: Outlive,
    recorded: Recorded,
    registry: CollectorRegistry,
    wire: Any,
    mode: Literal["child", "link"],
) -> None:
    @outlive.task(timeout=5.0, trace=mode)
    async def save() -> None: ...

    async def main() -> None:
        await visit(wire, room_app(outlive, leave(save)))
        await asyncio.sleep(1)

    # That no observer raised is told by the fixture.
    run(main())
    assert [span.name for span in recorded.spans] == ["save"]
    labels = {"route": ROUTE, "transport": "websocket"}
    assert registry.get_sample_value("outlive_disconnect_tail_seconds_count", labels) == 1


def test_the_runs_span_is_current_inside_and_nowhere_else(
    run: Any, outlive: Outlive, recorded: Recorded, wire: Any
) -> None:
    seen: dict[str, trace.Span] = {}

    @outlive.task(timeout=5.0)
    async def save() -> None:
        await asyncio.sleep(0)
        seen["inside"] = trace.get_current_span()

    async def at_end() -> None:
        before = trace.get_current_span()
        await save()
        assert trace.get_current_span() is before
        save.submit()
        assert trace.get_current_span() is before
        seen["outside"] = before

    async def main() -> None:
        await visit(wire, room_app(outlive, at_end), recorded.tracer)
        assert trace.get_current_span() is trace.INVALID_SPAN
        await asyncio.sleep(1)

    run(main())
    assert seen["inside"].get_span_context() == context_of(recorded.named("save")[-1])
    assert seen["outside"].get_span_context() == context_of(recorded.one("server"))


# Outcomes and events


def test_span_and_metric_agree_on_every_outcome(
    run: Any, registry: CollectorRegistry, recorded: Recorded, lifespan: Any
) -> None:
    outlive = Outlive(registry=registry, tracer_provider=recorded.provider, max_running=4, max_pending=0)
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=1.0)
    async def work(seconds: float) -> None:
        await asyncio.sleep(seconds)
        if seconds == 0.5:
            raise LookupError("no word of this may show")

    async def main() -> None:
        async with lifespan(app):
            for seconds in (0, 0.5, 60, 60, 0):
                last = work.submit(seconds)
                if seconds == 60:
                    previous = last
            assert last.outcome is Outcome.REJECTED
            previous.cancel()
            await asyncio.sleep(2)

    run(main())
    told = {}
    for span in recorded.named("work"):
        attributes = dict(span.attributes or {})
        told[attributes["outlive.outcome"]] = (attributes.get("error.type"), span.status.status_code)
        assert not span.status.description
        assert not [event for event in span.events if event.name == "exception"]
    assert told == {
        "completed": (None, StatusCode.UNSET),
        "failed": ("LookupError", StatusCode.ERROR),
        "timed_out": ("timed_out", StatusCode.ERROR),
        "cancelled": ("cancelled", StatusCode.ERROR),
        "rejected": ("rejected", StatusCode.ERROR),
    }
    for outcome in told:
        labels = {"task": "work", "outcome": str(outcome)}
        assert registry.get_sample_value("outlive_runs_total", labels) == 1


def test_the_error_type_names_where_an_exception_comes_from(
    run: Any, outlive: Outlive, recorded: Recorded, lifespan: Any
) -> None:
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=1.0)
    async def work() -> None:
        raise RunTimedOut("inner", "in the work itself")

    async def main() -> None:
        async with lifespan(app):
            work.submit()

    run(main())
    assert dict(recorded.one("work").attributes or {})["error.type"] == "outlive.errors.RunTimedOut"


def test_absorbed_cancellations_the_deadline_and_the_drain_are_events(
    run: Any, outlive: Outlive, recorded: Recorded, lifespan: Any
) -> None:
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=5.0)
    async def save() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        async with lifespan(app):
            run = save.submit()

            async def wait() -> None:
                await run

            waiting = [asyncio.ensure_future(wait()) for _ in range(2)]
            await asyncio.sleep(1)
            for waiter in waiting:
                waiter.cancel()
            await asyncio.wait(waiting)

    run(main())
    saved = recorded.one("save")
    assert [event.name for event in saved.events] == [
        "outlive.cancellation_absorbed",
        "outlive.cancellation_absorbed",
        "outlive.drain",
        "outlive.deadline",
    ]
    assert dict(saved.attributes or {})["outlive.absorbed_cancellations"] == 2


# Scopes


def test_a_scope_is_a_span_around_its_block(
    run: Any, outlive: Outlive, recorded: Recorded, lifespan: Any
) -> None:
    app = FastAPI()
    outlive.install(app)

    async def main() -> None:
        async with lifespan(app):
            with recorded.tracer.start_as_current_span("outside") as outside:
                async with outlive.scope("flush", timeout=1.0):
                    with recorded.tracer.start_as_current_span("inside"):
                        pass
                assert trace.get_current_span() is outside

    run(main())
    flush = recorded.one("flush")
    assert parent_of(recorded.one("inside")) == context_of(flush).span_id
    assert parent_of(flush) == context_of(recorded.one("outside")).span_id


async def ticks(outlive: Outlive) -> AsyncGenerator[int, None]:
    async with outlive.scope("flush", timeout=60.0):
        yield 1
        yield 2


def test_a_scope_in_a_generator_that_another_task_closes_complains_of_nothing(
    run: Any, outlive: Outlive, recorded: Recorded, lifespan: Any
) -> None:
    app = FastAPI()
    outlive.install(app)

    async def main() -> None:
        async with lifespan(app):
            generator = ticks(outlive)

            async def begin() -> None:
                with recorded.tracer.start_as_current_span("begins"):
                    await anext(generator)

            await asyncio.ensure_future(begin())
            with recorded.tracer.start_as_current_span("ends") as ends:
                with suppress(
                    RuntimeError
                ):  # AnyIO's cancel scope wants to be left by the task that entered it
                    await generator.aclose()
                assert trace.get_current_span() is ends

    run(main())
    assert len(recorded.named("flush")) == 1


# Without sampling, without an SDK


def test_what_is_not_sampled_runs_all_the_same(
    run: Any, registry: CollectorRegistry, recorded: Recorded, wire: Any
) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(recorded.exporter))
    outlive = Outlive(registry=registry, tracer_provider=provider)

    @outlive.task(timeout=5.0)
    async def save() -> None: ...

    run(visit(wire, room_app(outlive, save), provider.get_tracer("test")))
    assert recorded.spans == []
    assert outlive.counts.outcomes[Outcome.COMPLETED] == 1


def test_without_an_sdk_runs_run_all_the_same(run: Any, registry: CollectorRegistry, wire: Any) -> None:
    outlive = Outlive(registry=registry, tracer_provider=trace.NoOpTracerProvider())

    @outlive.task(timeout=5.0)
    async def save() -> None: ...

    run(visit(wire, room_app(outlive, save)))
    assert outlive.counts.outcomes[Outcome.COMPLETED] == 1


# Beside other instrumentation


@contextmanager
def contrib(app: FastAPI, recorded: Recorded) -> Iterator[None]:
    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=recorded.provider, exclude_spans=["receive", "send"]
    )
    yield
    FastAPIInstrumentor.uninstrument_app(app)


@pytest.mark.parametrize("first", ["outlive", "contrib"])
def test_with_the_contrib_instrumentation_in_either_order(  # noqa: C901 - two kinds of connection
    run: Any, outlive: Outlive, recorded: Recorded, wire: Any, first: str
) -> None:
    @outlive.task(timeout=5.0)
    async def save() -> None: ...

    app = FastAPI()
    if first == "outlive":
        outlive.install(app)

    @app.websocket(ROUTE)
    async def room(ws: WebSocket, room: str) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            pass
        await save()

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncGenerator[str, None]:
            try:
                for _ in range(100):
                    yield "part"
                    await asyncio.sleep(0.1)
            finally:
                save.submit()

        return StreamingResponse(parts())

    async def main() -> None:
        with contrib(app, recorded):
            if first == "contrib":
                outlive.install(app)
            await visit(wire, app)
            connection = wire(app, "http", "/stream")
            await asyncio.sleep(1)
            connection.put({"type": "http.disconnect"})
            await connection.handler
            await asyncio.sleep(1)

    run(main())
    for connection in recorded.servers:
        route = dict(connection.attributes or {})["http.route"]
        root = recorded.one(f"disconnect {route}")
        assert [link.context.span_id for link in root.links] == [context_of(connection).span_id]
        assert "outlive.disconnect" in [event.name for event in connection.events]
    assert len(recorded.servers) == 2
    # One span a connection, one a flow, one a run: none for a message.
    assert len(recorded.spans) == 6


@pytest.mark.skipif(
    "telemetry" not in inspect.signature(FastAPI).parameters,
    reason="this FastAPI has no telemetry of its own",
)
def test_with_fastapis_own_telemetry(
    run: Any, outlive: Outlive, recorded: Recorded, wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", recorded.provider)

    @outlive.task(timeout=5.0)
    async def save() -> None: ...

    app = FastAPI(telemetry={"tracing": True})
    outlive.install(app)

    @app.websocket(ROUTE)
    async def room(ws: WebSocket, room: str) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            pass
        await save()

    run(visit(wire, app))
    root = recorded.one(f"disconnect {ROUTE}")
    (server,) = recorded.servers
    assert ROUTE in server.name
    assert [link.context.span_id for link in root.links] == [context_of(server).span_id]
    assert parent_of(recorded.one("save")) == context_of(root).span_id


def test_what_a_stranger_says_beside_its_span_is_not_kept() -> None:
    parent = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    carrier = {"traceparent": parent, "tracestate": "vendor=a-users-words", "baggage": "user=ann"}
    provider = TracerProvider()
    provider.add_span_processor(LinkRemote())
    span = provider.get_tracer("test").start_span("GET /", context=UntrustedTraceContext().extract(carrier))
    (link,) = span.links  # type: ignore[attr-defined]
    assert link.context.trace_id == int("1" * 32, 16)
    assert not link.context.trace_state
