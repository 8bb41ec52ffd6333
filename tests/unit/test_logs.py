"""Logs: what is told at which level, with which trace, and that nothing of the payload is."""

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from outlive import Outlive
from outlive.telemetry.setup import set_up_logging

SECRET = "the users own words"


@pytest.fixture
def outlive(registry: CollectorRegistry) -> Outlive:
    return Outlive(registry=registry, tracer_provider=TracerProvider(), max_running=4, max_pending=0)


@pytest.fixture
def at_debug(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "outlive")
    return caplog


def events(caplog: pytest.LogCaptureFixture, *names: str) -> list[tuple[str, int]]:
    return [
        (record.getMessage(), record.levelno)
        for record in caplog.records
        if record.name == "outlive" and record.getMessage().startswith(names)
    ]


@pytest.fixture
def eventful(run: Any, outlive: Outlive, lifespan: Any, at_debug: Any) -> Callable[[], None]:
    """Runs with every outcome, an absorbed cancellation and a stuck run."""
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=1.0)
    async def work(seconds: float, payload: str) -> str:
        await asyncio.sleep(seconds)
        if seconds == 0.5:
            raise LookupError(payload)
        return payload

    @outlive.task(timeout=1.0)
    async def hang(payload: str) -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        async with lifespan(app):
            for seconds in (0, 0.5, 60, 60, 0):
                last = work.submit(seconds, SECRET)
                if seconds == 60:
                    previous = last
            previous.cancel()
            await asyncio.sleep(2)
            waiting = asyncio.ensure_future(hang(SECRET))
            await asyncio.sleep(0.1)
            waiting.cancel()
            await asyncio.sleep(15)

    return lambda: run(main())


def test_each_run_has_an_event_at_its_start_and_one_at_its_end(
    eventful: Callable[[], None], at_debug: pytest.LogCaptureFixture
) -> None:
    eventful()
    assert events(at_debug, "run started") == [("run started: work", logging.DEBUG)] * 4 + [
        ("run started: hang", logging.DEBUG)
    ]
    ended = {
        (record.outcome, record.levelno, getattr(record, "error_type", None))  # type: ignore[attr-defined]
        for record in at_debug.records
        if record.getMessage() == "run ended: work"
    }
    assert ended == {
        ("completed", logging.INFO, None),
        ("failed", logging.WARNING, "LookupError"),
        ("timed_out", logging.WARNING, "timed_out"),
        ("cancelled", logging.WARNING, "cancelled"),
        ("rejected", logging.WARNING, "rejected"),
    }


def test_a_stuck_run_is_told_with_its_stack_and_so_is_its_end(
    eventful: Callable[[], None], at_debug: pytest.LogCaptureFixture
) -> None:
    eventful()
    assert events(at_debug, "run stuck", "stuck run") == [
        ("run stuck: cancelled, and not ended within the cancel grace: hang", logging.ERROR),
        ("stuck run ended after all: hang", logging.INFO),
    ]
    (stuck,) = [record for record in at_debug.records if record.getMessage().startswith("run stuck")]
    assert "await asyncio.sleep(10)" in stuck.stack  # type: ignore[attr-defined]


def test_an_absorbed_cancellation_and_the_drain_are_told(
    eventful: Callable[[], None], at_debug: pytest.LogCaptureFixture
) -> None:
    eventful()
    assert events(at_debug, "cancellation", "drain") == [
        ("cancellation absorbed: hang", logging.DEBUG),
        ("drain started", logging.INFO),
        ("drain ended", logging.INFO),
    ]


def test_every_event_of_a_run_carries_its_trace(
    eventful: Callable[[], None], at_debug: pytest.LogCaptureFixture
) -> None:
    eventful()
    of_runs = [record for record in at_debug.records if hasattr(record, "task")]
    assert len(of_runs) == 14
    # A stuck run has had its outcome, and with it its span has ended, when it ends after all.
    assert of_runs.pop().getMessage() == "stuck run ended after all: hang"
    for record in of_runs:
        assert len(record.trace_id) == 32  # type: ignore[attr-defined]
        assert len(record.span_id) == 16  # type: ignore[attr-defined]


def test_neither_a_payload_nor_an_exceptions_message_is_told(
    eventful: Callable[[], None], at_debug: pytest.LogCaptureFixture
) -> None:
    eventful()
    for record in at_debug.records:
        assert SECRET not in repr(vars(record))
        assert record.exc_info is None
    stacks = [record.stack for record in at_debug.records if getattr(record, "outcome", "") == "failed"]  # type: ignore[attr-defined]
    assert "raise LookupError(payload)" in stacks[0]


def test_what_a_drain_left_is_told(
    run: Any, outlive: Outlive, lifespan: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    outlive.install(app)

    @outlive.task(timeout=100.0)
    async def hang() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(1_000)
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        async with lifespan(app):
            hang.submit()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    run(main())
    (ended,) = [record for record in caplog.records if record.getMessage() == "drain ended"]
    assert ended.levelno == logging.WARNING
    assert ended.cancelled_runs == 1  # type: ignore[attr-defined]
    assert ended.stuck_runs == ["hang"]  # type: ignore[attr-defined]


def test_a_disconnect_is_told_by_its_template(
    run: Any, outlive: Outlive, wire: Any, at_debug: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    outlive.install(app)

    @app.websocket("/rooms/{room}")
    async def room(ws: Any, room: str) -> None: ...

    async def main() -> None:
        connection = wire(app, "websocket", "/rooms/secret-room")
        await asyncio.wait([connection.handler])

    run(main())
    for record in at_debug.records:
        assert "secret-room" not in repr(vars(record))


# The set-up


@pytest.fixture
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def written(stream: io.StringIO) -> str:
    """What is there once the thread has written it."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    return stream.getvalue()


@pytest.mark.usefixtures("_restored")
def test_json_lines_carry_the_fields_and_the_trace() -> None:
    stream = io.StringIO()
    set_up_logging(stream=stream)
    provider = TracerProvider()
    with provider.get_tracer("test").start_as_current_span("work") as span:
        logging.getLogger("outlive").warning("run ended: %s", "save", extra={"outcome": "failed"})
        structlog.get_logger("mine").info("said", room=1)
    logging.getLogger("outlive").info("drain started")
    first, second, third = (json.loads(line) for line in written(stream).splitlines())
    expected = {
        "trace_id": trace.format_trace_id(span.get_span_context().trace_id),
        "span_id": trace.format_span_id(span.get_span_context().span_id),
    }
    assert (
        first.items()
        >= {
            "event": "run ended: save",
            "level": "warning",
            "logger": "outlive",
            "outcome": "failed",
            **expected,
        }.items()
    )
    assert (
        second.items() >= {"event": "said", "level": "info", "logger": "mine", "room": 1, **expected}.items()
    )
    assert "trace_id" not in third
    assert third["timestamp"].endswith("Z")


@pytest.mark.usefixtures("_restored")
def test_the_trace_of_a_run_goes_before_that_of_the_moment() -> None:
    stream = io.StringIO()
    set_up_logging(stream=stream)
    with TracerProvider().get_tracer("test").start_as_current_span("another"):
        logging.getLogger("outlive").info("run ended", extra={"trace_id": "a" * 32, "span_id": "b" * 16})
    assert json.loads(written(stream))["trace_id"] == "a" * 32


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("_restored")
def test_a_terminal_gets_colours_and_no_json() -> None:
    stream = Terminal()
    set_up_logging(stream=stream)
    logging.getLogger("outlive").warning("run ended", extra={"outcome": "failed"})
    assert "run ended" in written(stream)
    assert "\x1b[" in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(stream.getvalue())


@pytest.mark.usefixtures("_restored")
def test_the_style_can_be_told() -> None:
    terminal, file = Terminal(), io.StringIO()
    set_up_logging("json", stream=terminal)
    logging.getLogger("outlive").warning("one")
    assert json.loads(written(terminal))["event"] == "one"
    set_up_logging("console", stream=file)
    logging.getLogger("outlive").warning("two")
    assert "two" in written(file)
    assert "\x1b[" not in file.getvalue()


@pytest.mark.usefixtures("_restored")
def test_the_level_holds_and_calls_of_the_http_client_are_quiet() -> None:
    stream = io.StringIO()
    set_up_logging(level="INFO", stream=stream)
    logging.getLogger("outlive").debug("run started")
    logging.getLogger("httpx").info("GET https://partner.example/?key=secret")
    structlog.get_logger("mine").debug("said")
    assert written(stream) == ""
