"""Whatever servers, clients and handlers send, in whatever order: no run is lost, and the books balance."""

import asyncio
import logging
from collections import Counter
from typing import Any

from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from outlive import (
    ConnectionDetails,
    DisconnectDetails,
    Observer,
    Outcome,
    Outlive,
    RunDetails,
    RunEnd,
    Transport,
)

MAX_RUNNING = 2
MAX_PENDING = 2

ANYTHING: st.SearchStrategy[Any] = st.sampled_from(
    [None, 0, -1, 1000, 1005, 1006, 1012, 10**9, 1.5, True, "", "text", b"", b"bytes", [], {}, [(b"content-type", b"text/event-stream")]]
)  # fmt: skip
RECEIVED = [
    "websocket.connect",
    "websocket.receive",
    "websocket.disconnect",
    "http.request",
    "http.disconnect",
]
SENT = [
    "websocket.accept", "websocket.send", "websocket.close", "websocket.http.response.start", "websocket.http.response.body",
    "http.response.start", "http.response.body", "http.response.push", "http.response.trailers", "http.response.pathsend",
]  # fmt: skip
KEYS = ["text", "bytes", "code", "reason", "body", "more_body", "status", "headers"]
GOOD_SENT: list[Message] = [
    {"type": "websocket.accept"},
    {"type": "websocket.send", "text": "a line"},
    {"type": "websocket.close", "code": 1000},
    {"type": "http.response.start", "status": 200, "headers": []},
    {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]},
    {"type": "http.response.body", "body": b"part", "more_body": True},
    {"type": "http.response.body", "body": b""},
]
GOOD_RECEIVED: list[Message] = [
    {"type": "websocket.connect"},
    {"type": "websocket.receive", "text": "a line"},
    {"type": "websocket.disconnect", "code": 1001, "reason": ""},
    {"type": "websocket.disconnect", "code": 1006},
    {"type": "http.request", "body": b"", "more_body": False},
    {"type": "http.request", "body": b"part", "more_body": True},
    {"type": "http.disconnect"},
]


def messages(good: list[Message], types: list[str]) -> st.SearchStrategy[Any]:
    """Good ones and broken ones: other types, missing keys, values of the wrong type."""
    kinds = st.one_of(st.sampled_from([*types, "unheard.of", ""]), ANYTHING)
    broken = st.fixed_dictionaries({}, optional={"type": kinds, **dict.fromkeys(KEYS, ANYTHING)})
    return st.one_of(st.sampled_from(good), st.sampled_from(good), broken)


SECONDS = st.sampled_from([0.0, 0.1, 0.5, 1.0, 5.0])
STEPS = st.one_of(
    st.tuples(st.just("receive"), st.none()),
    st.tuples(st.just("send"), messages(GOOD_SENT, SENT)),
    st.tuples(st.sampled_from(["submit", "wait", "sleep", "after"]), SECONDS),
    st.tuples(
        st.just("raise"), st.sampled_from([ZeroDivisionError, OSError, asyncio.CancelledError, SystemError])
    ),
)
CONNECTIONS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["websocket", "http"]),
        "spec_version": st.sampled_from(["2.0", "2.3", "2.4"]),
        "headers": st.sampled_from([[], [(b"content-length", b"4")], [(b"transfer-encoding", b"chunked")]]),
        "steps": st.lists(STEPS, max_size=12),
        # Whether it goes on after what its steps raise, a cancellation included.
        "stubborn": st.booleans(),
    }
)
EVENTS = st.one_of(
    st.tuples(st.just("put"), messages(GOOD_RECEIVED, RECEIVED)),
    st.tuples(st.just("put"), messages(GOOD_RECEIVED, RECEIVED)),
    st.tuples(st.just("pass"), SECONDS),
    st.tuples(st.just("cancel"), st.none()),
    st.tuples(st.just("break"), st.sampled_from([OSError("gone"), RuntimeError("closed"), None])),
)


class Ledger(Observer):
    """Keeps books of its own, and objects to what must not be."""

    def __init__(self) -> None:
        self.submitted = 0
        self.ended: Counter[RunDetails] = Counter()
        self.outcomes: Counter[Outcome] = Counter()
        self.open: dict[ConnectionDetails, Transport | None] = {}
        self.disconnected_ones: Counter[ConnectionDetails] = Counter()
        self.flows: Counter[DisconnectDetails] = Counter()
        self.wrong: list[str] = []

    def run_submitted(self, run: RunDetails) -> None:
        self.submitted += 1

    def run_ended(self, run: RunDetails, end: RunEnd) -> None:
        self.ended[run] += 1
        self.outcomes[end.outcome] += 1

    def connection_opened(self, connection: ConnectionDetails) -> None:
        self.open[connection] = None

    def connection_identified(self, connection: ConnectionDetails, route: str, transport: Transport) -> None:
        if connection not in self.open:
            self.wrong.append("identified what isn't open")
        self.open[connection] = transport

    def disconnected(self, disconnect: DisconnectDetails) -> None:
        self.disconnected_ones[disconnect.connection] += 1
        if self.open.get(disconnect.connection) is None:
            self.wrong.append("a disconnect of what isn't open, or has no route yet")

    def connection_closed(
        self, connection: ConnectionDetails, duration: float, status: int | None, last_byte: float | None
    ) -> None:
        if self.open.pop(connection, None) is None:
            self.wrong.append("closed what isn't open, or has no route yet")

    def flow_ended(self, disconnect: DisconnectDetails, tail: float) -> None:
        self.flows[disconnect] += 1
        if not self.disconnected_ones[disconnect.connection]:
            self.wrong.append("a flow without its disconnect")


class Complaints(logging.Handler):
    """What Outlive logs about itself when something of its own went wrong."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


class Fuzzed:
    """An app whose handlers do what they are told, and the server and clients around it."""

    def __init__(self, wire: Any, scripts: list[dict[str, Any]]) -> None:
        self.wire = wire
        self.scripts = scripts
        self.ledger = Ledger()
        self.registry = CollectorRegistry()
        self.outlive = Outlive(
            registry=self.registry,
            observers=[self.ledger],
            max_running=MAX_RUNNING,
            max_pending=MAX_PENDING,
            drain_timeout=8.0,
        )
        self.work = self.outlive.task(name="work", timeout=2.0, max_wait=3.0)(self.sleep)
        self.app = FastAPI()
        self.app.mount("/raw", self.raw)
        self.outlive.install(self.app)
        self.unheard: list[dict[str, Any]] = []
        self.entered = 0
        self.handlers: list[asyncio.Future[None]] = []

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def raw(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered += 1
        script = self.scripts[int(scope["query_string"])]
        try:
            for step, value in script["steps"]:
                try:
                    await self.do(step, value, receive, send)
                except (Exception, asyncio.CancelledError):
                    if not script["stubborn"]:
                        raise
        finally:
            self.work.submit(0.1)

    async def do(self, step: str, value: Any, receive: Receive, send: Send) -> None:
        match step:
            case "receive":
                await receive()
            case "send":
                await send(value)
            case "submit":
                self.work.submit(value)
            case "wait":
                await self.work(value)
            case "after":
                asyncio.get_running_loop().call_later(value, self.work.submit, value)
            case "sleep":
                await asyncio.sleep(value)
            case "raise":
                raise value("made up")

    def check(self) -> None:
        counts = self.outlive.counts
        assert counts.submitted == sum(counts.outcomes.values()) + counts.running + counts.pending
        assert counts.submitted == self.ledger.submitted
        assert counts.outcomes == {outcome: self.ledger.outcomes[outcome] for outcome in Outcome}
        assert set(self.ledger.ended.values()) <= {1}
        assert set(self.ledger.disconnected_ones.values()) <= {1}
        assert set(self.ledger.flows.values()) <= {1}
        assert self.ledger.wrong == []
        assert self.unheard == []

    async def play(self, events: list[tuple[int, tuple[str, Any]]], lifespan: Any, *, leave: bool) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.unheard.append(context))
        async with lifespan(self.app):
            connections = [
                self.wire(
                    self.app,
                    script["kind"],
                    "/raw/",
                    query=str(number).encode(),
                    headers=script["headers"],
                    spec_version=script["spec_version"],
                    incoming=[],
                )
                for number, script in enumerate(self.scripts)
            ]
            self.handlers = [connection.handler for connection in connections]
            for which, (event, value) in events:
                connection = connections[which % len(connections)]
                match event:
                    case "put":
                        connection.put(value)
                    case "pass":
                        await asyncio.sleep(value)
                    case "cancel":
                        connection.handler.cancel()
                    case "break":
                        connection.send_error = value
                await asyncio.sleep(0)
                self.check()
            if leave:
                await self.end()
        self.check()
        await self.end()
        # What "after" has left to be submitted is rejected by now.
        await asyncio.sleep(10)
        self.check()
        counts = self.outlive.counts
        assert (counts.running, counts.pending, counts.stuck) == (0, 0, 0)
        assert len(self.ledger.ended) == counts.submitted >= self.entered
        assert self.ledger.open == {}
        assert self.outlive._runner.connections == 0
        for family in self.registry.collect():
            for sample in family.samples:
                assert sample.name != "outlive_connections" or sample.value == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def end(self) -> None:
        """Cancel the handlers until they end, for a stubborn one goes on."""
        while not all(handler.done() for handler in self.handlers):
            for handler in self.handlers:
                handler.cancel()
            await asyncio.sleep(0.1)
        await asyncio.gather(*self.handlers, return_exceptions=True)


@settings(
    max_examples=200,
    # The same sequences each time: what isn't a change of ours must not turn a build red.
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    scripts=st.lists(CONNECTIONS, min_size=1, max_size=3),
    events=st.lists(st.tuples(st.integers(0, 2), EVENTS), max_size=20),
    leave=st.booleans(),
)
def test_no_sequence_of_messages_loses_or_doubles_a_run(
    run: Any, wire: Any, lifespan: Any, scripts: Any, events: Any, leave: bool
) -> None:
    fuzzed = Fuzzed(wire, scripts)

    async def main() -> None:
        try:
            await fuzzed.play(events, lifespan, leave=leave)
        finally:
            await fuzzed.end()

    complaints = Complaints()
    logger = logging.getLogger("outlive")
    logger.addHandler(complaints)
    try:
        run(main())
    finally:
        logger.removeHandler(complaints)
    assert complaints.found == []
