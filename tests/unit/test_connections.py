"""Connections: which ends are disconnects, why, and how a handler is told."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from outlive import Outlive

Handle = Callable[[Receive, Send], Awaitable[object]]

ROOM = "/rooms/{room}"
ITEM = "/items/{item}"
ACCEPT: Message = {"type": "websocket.accept"}
LINE: Message = {"type": "websocket.send", "text": "a line"}
LEFT: Message = {"type": "websocket.disconnect", "code": 1001, "reason": ""}
GONE: Message = {"type": "http.disconnect"}
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
EVENTS: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}
CHUNK: Message = {"type": "http.response.body", "body": b"part", "more_body": True}
LAST: Message = {"type": "http.response.body", "body": b"", "more_body": False}


class Raw(Response):
    """A response that is alone with `receive` and `send`."""

    def __init__(self, handle: Handle) -> None:
        super().__init__()
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handle(receive, send)


def app_with(outlive: Outlive, handle: Handle) -> FastAPI:
    app = FastAPI()
    outlive.install(app)

    @app.websocket(ROOM)
    async def room(ws: WebSocket, room: str) -> None:
        await handle(ws._receive, ws._send)

    @app.api_route(ITEM, methods=["GET", "POST"])
    async def item(item: str) -> Response:
        return Raw(handle)

    return app


def found(registry: CollectorRegistry, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The samples of that name which aren't zero, by the values of these labels."""
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name and sample.value
    }


def disconnects(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    return found(registry, "outlive_disconnects_total", "route", "transport", "cause")


async def start_of(transport: str, receive: Receive, send: Send) -> None:
    if transport == "websocket":
        await receive()
        await send(ACCEPT)
    else:
        await send(EVENTS if transport == "sse" else START)


def address(transport: str) -> tuple[str, str, str]:
    """What to connect to, and under which route it shows."""
    return ("websocket", "/rooms/a", ROOM) if transport == "websocket" else ("http", "/items/1", ITEM)


transports = pytest.mark.parametrize("transport", ["websocket", "sse", "http"])


# Why a connection ended


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        ({"code": 1000, "reason": ""}, "client_closed"),
        ({"code": 1000}, "client_closed"),
        ({"code": 1001, "reason": "going away"}, "client_closed"),
        ({"code": 1005, "reason": ""}, "client_closed"),
        ({"code": 1005, "reason": None}, "client_closed"),
        ({"code": 4000, "reason": "bye"}, "client_closed"),
        ({"code": 1006}, "client_lost"),
        ({"code": 1006, "reason": ""}, "client_lost"),
        ({"code": 1005}, "client_lost"),
        ({}, "client_lost"),
        ({"code": None}, "client_lost"),
        ({"code": 1011, "reason": "keepalive ping timeout"}, "client_lost"),
        ({"code": 1012}, "server_shutdown"),
    ],
)
def test_the_close_code_tells_the_cause(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, end: dict[str, Any], cause: str
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await receive()

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        connection.put({"type": "websocket.disconnect", **end})
        await connection.handler

    run(main())
    assert disconnects(registry) == {(ROOM, "websocket", cause): 1}


@pytest.mark.parametrize("transport", ["sse", "http"])
def test_a_client_that_leaves_a_response_is_lost(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, transport: str
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await start_of(transport, receive, send)
        while (await receive())["type"] != "http.disconnect":
            await send(CHUNK)

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "http", "/items/1")
        connection.put(GONE)
        await connection.handler

    run(main())
    assert disconnects(registry) == {(ITEM, transport, "client_lost"): 1}


@transports
def test_what_ends_in_a_drain_was_ended_by_the_server(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, transport: str
) -> None:
    kind, path, route = address(transport)

    async def handle(receive: Receive, send: Send) -> None:
        await start_of(transport, receive, send)
        while not (await receive())["type"].endswith("disconnect"):
            pass

    async def main() -> None:
        connection = wire(app_with(outlive, handle), kind, path)
        await asyncio.sleep(0.1)
        outlive.begin_drain()
        connection.put(LEFT if kind == "websocket" else GONE)
        await connection.handler

    run(main())
    assert disconnects(registry) == {(route, transport, "server_shutdown"): 1}


@transports
def test_a_cancelled_handler_was_ended_by_the_server(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, transport: str
) -> None:
    kind, path, route = address(transport)

    async def handle(receive: Receive, send: Send) -> None:
        await start_of(transport, receive, send)
        await asyncio.sleep(60)

    async def main() -> None:
        connection = wire(app_with(outlive, handle), kind, path)
        await asyncio.sleep(0.1)
        connection.handler.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connection.handler

    run(main())
    assert disconnects(registry) == {(route, transport, "server_shutdown"): 1}


@transports
def test_an_exception_in_mid_connection_is_an_error(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, transport: str
) -> None:
    kind, path, route = address(transport)

    async def handle(receive: Receive, send: Send) -> None:
        await start_of(transport, receive, send)
        raise LookupError

    async def main() -> None:
        with pytest.raises(LookupError):
            await wire(app_with(outlive, handle), kind, path).handler

    run(main())
    assert disconnects(registry) == {(route, transport, "error"): 1}


def test_an_exception_before_a_websocket_is_accepted_is_an_error(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        raise LookupError

    async def main() -> None:
        with pytest.raises(LookupError):
            await wire(app_with(outlive, handle), "websocket", "/rooms/a").handler

    run(main())
    assert disconnects(registry) == {(ROOM, "websocket", "error"): 1}


def test_an_exception_before_the_response_is_answered_in_full(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        raise LookupError

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "http", "/items/1")
        with pytest.raises(LookupError):
            await connection.handler
        assert connection.status == 500

    run(main())
    assert disconnects(registry) == {}
    assert found(registry, "outlive_http_request_duration_seconds_count", "route", "method", "status") == {
        (ITEM, "GET", "500"): 1
    }


@transports
def test_an_oserror_from_send_tells_a_lost_client(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, transport: str
) -> None:
    kind, path, route = address(transport)

    async def handle(receive: Receive, send: Send) -> None:
        await start_of(transport, receive, send)
        await asyncio.sleep(0.1)
        await send(LINE if kind == "websocket" else CHUNK)

    async def main() -> None:
        connection = wire(app_with(outlive, handle), kind, path)
        await asyncio.sleep(0.05)
        connection.send_error = ConnectionResetError("the server's own words")
        with pytest.raises(ConnectionResetError, match="the server's own words"):
            await connection.handler

    run(main())
    assert disconnects(registry) == {(route, transport, "client_lost"): 1}


@transports
@pytest.mark.parametrize(
    ("error", "cause"),
    [(ConnectionResetError(), "client_lost"), (asyncio.CancelledError(), "server_shutdown")],
)
def test_an_end_that_the_server_could_not_make_is_a_disconnect(
    run: Any,
    outlive: Outlive,
    registry: CollectorRegistry,
    wire: Any,
    transport: str,
    error: BaseException,
    cause: str,
) -> None:
    kind, path, route = address(transport)

    async def handle(receive: Receive, send: Send) -> None:
        await start_of(transport, receive, send)
        await asyncio.sleep(0.1)
        await send({"type": "websocket.close", "code": 1000} if kind == "websocket" else LAST)

    async def main() -> None:
        connection = wire(app_with(outlive, handle), kind, path)
        await asyncio.sleep(0.05)
        connection.send_error = error
        await asyncio.wait([connection.handler])

    run(main())
    assert disconnects(registry) == {(route, transport, cause): 1}


@transports
def test_what_follows_a_disconnect_is_its_consequence(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, transport: str
) -> None:
    kind, path, route = address(transport)
    cause = "client_closed" if kind == "websocket" else "client_lost"

    async def handle(receive: Receive, send: Send) -> None:
        await start_of(transport, receive, send)
        await asyncio.sleep(0.1)
        with pytest.raises(OSError, match="reset"):
            await send(LINE if kind == "websocket" else CHUNK)
        while not (await receive())["type"].endswith("disconnect"):
            pass
        raise LookupError

    async def main() -> None:
        connection = wire(app_with(outlive, handle), kind, path)
        await asyncio.sleep(0.05)
        connection.send_error = ConnectionResetError("reset")
        connection.put({"type": "websocket.disconnect", "code": 1000} if kind == "websocket" else GONE)
        with pytest.raises(LookupError):
            await connection.handler

    run(main())
    assert disconnects(registry) == {(route, transport, cause): 1}


@pytest.mark.parametrize("receives", [False, True])
@pytest.mark.parametrize("said_before", [0, 3])
@pytest.mark.parametrize(("code", "cause"), [(1001, "client_closed"), (1006, "client_lost")])
def test_a_send_that_fails_is_asked_for_the_close_frame_that_it_ran_into(
    run: Any,
    outlive: Outlive,
    registry: CollectorRegistry,
    wire: Any,
    code: int,
    cause: str,
    said_before: int,
    receives: bool,
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        async def listen() -> None:
            while (await receive())["type"] != "websocket.disconnect":
                pass

        await start_of("websocket", receive, send)
        listening = asyncio.ensure_future(listen()) if receives else None
        await asyncio.sleep(0.1)
        await asyncio.gather(send(LINE), *filter(None, [listening]))

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        connection.put(*[{"type": "websocket.receive", "text": "x"}] * said_before)
        await asyncio.sleep(0.05)
        connection.send_error = ConnectionResetError("reset")
        connection.put({"type": "websocket.disconnect", "code": code})
        with pytest.raises(ConnectionResetError, match="reset"):
            await connection.handler

    run(main())
    assert disconnects(registry) == {("/rooms/{room}", "websocket", cause): 1}


@pytest.mark.parametrize("gone", [False, True])
def test_what_a_servers_library_raises_at_a_send_is_a_disconnect_only_after_one(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, gone: bool
) -> None:
    # uvicorn with wsproto and daphne raise errors of their own once a ping was not answered.
    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await asyncio.sleep(0.1)
        await send(LINE)

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        await asyncio.sleep(0.05)
        connection.send_error = LookupError("the library's own")
        if gone:
            connection.put({"type": "websocket.disconnect", "code": 1006})
        with pytest.raises(OSError if gone else LookupError) as raised:
            await connection.handler
        assert isinstance(raised.value.__cause__, LookupError) is gone

    run(main())
    cause = "client_lost" if gone else "error"
    assert disconnects(registry) == {("/rooms/{room}", "websocket", cause): 1}


@pytest.mark.parametrize("transport", ["websocket", "sse"])
def test_a_handler_that_a_stopped_server_did_not_tell_is_told_by_its_next_send(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, lifespan: Any, transport: str
) -> None:
    # By the lifespan's shutdown all connections are closed; granian leaves the handlers in the dark, and the drain
    # would wait for them in vain.
    kind, path, route = address(transport)
    told: list[str] = []

    async def handle(receive: Receive, send: Send) -> None:
        await start_of(transport, receive, send)
        try:
            while True:
                await send(LINE if kind == "websocket" else CHUNK)
                await asyncio.sleep(0.1)
        finally:
            save.submit("the rest")

    @outlive.task(timeout=5.0)
    async def save(what: str) -> None:
        told.append(what)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        app = app_with(outlive, handle)
        async with lifespan(app):
            connection = wire(app, kind, path, spec_version="2.4")
            await asyncio.sleep(5)
            stopped_at = loop.time()
        assert loop.time() - stopped_at < 1
        with pytest.raises(OSError, match="the client has gone"):
            await connection.handler

    run(main())
    assert told == ["the rest"]
    assert disconnects(registry) == {(route, transport, "server_shutdown"): 1}


@pytest.mark.parametrize("held", ["send", "receive"])
def test_a_handler_that_a_stopped_server_does_not_answer_is_cancelled(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, lifespan: Any, held: str
) -> None:
    # granian leaves a send that is under way at its stop without an answer.
    told: list[str] = []

    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        try:
            while True:
                await send(LINE)
                if held == "receive":
                    await receive()
                await asyncio.sleep(0.1)
        finally:
            await save("the rest")

    @outlive.task(timeout=5.0)
    async def save(what: str) -> None:
        told.append(what)

    async def never() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        app = app_with(outlive, handle)
        async with lifespan(app):
            connection = wire(app, "websocket", "/rooms/a")
            await asyncio.sleep(0.05)
            if held == "send":
                connection.while_sending = never
            await asyncio.sleep(5)
            stopped_at = loop.time()
        assert loop.time() - stopped_at < 2
        await asyncio.wait([connection.handler])
        assert connection.handler.cancelled()

    run(main())
    assert told == ["the rest"]
    assert disconnects(registry) == {("/rooms/{room}", "websocket", "server_shutdown"): 1}


def test_a_handler_that_works_on_after_the_servers_stop_is_waited_for(
    run: Any, outlive: Outlive, wire: Any, lifespan: Any
) -> None:
    done: list[str] = []

    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await asyncio.sleep(8)
        done.append("all of it")

    async def main() -> None:
        app = app_with(Outlive(registry=CollectorRegistry(), watch=False), handle)
        async with lifespan(app):
            connection = wire(app, "websocket", "/rooms/a")
            await asyncio.sleep(5)
        await connection.handler

    run(main())
    assert done == ["all of it"]


# What is no disconnect


def test_after_the_servers_own_close_nothing_is_a_disconnect(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await send({"type": "websocket.close", "code": 1000})
        await receive()
        raise LookupError

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        connection.put({"type": "websocket.disconnect", "code": 1006})
        with pytest.raises(LookupError):
            await connection.handler

    run(main())
    assert disconnects(registry) == {}


@pytest.mark.parametrize("transport", ["sse", "http"])
@pytest.mark.parametrize("cancelled", [False, True])
def test_after_the_last_byte_nothing_is_a_disconnect(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, transport: str, cancelled: bool
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await start_of(transport, receive, send)
        await send(LAST)
        while (await receive())["type"] != "http.disconnect":
            pass
        await asyncio.sleep(5)

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "http", "/items/1")
        connection.put(GONE)
        await asyncio.sleep(1)
        if cancelled:
            connection.handler.cancel()
        await asyncio.wait([connection.handler])

    run(main())
    assert disconnects(registry) == {}


def test_a_websocket_handler_that_returns_ends_its_connection(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    async def main() -> None:
        app = app_with(outlive, lambda receive, send: start_of("websocket", receive, send))
        await wire(app, "websocket", "/rooms/a").handler

    run(main())
    assert disconnects(registry) == {}


def test_a_refused_websocket_is_no_disconnect(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    app = FastAPI()
    outlive.install(app)

    @app.websocket("/rooms/{room}")
    async def room(ws: WebSocket, room: str) -> None:
        raise HTTPException(403)

    async def main() -> None:
        extension: dict[str, Any] = {"websocket.http.response": {}}
        connection = wire(app, "websocket", "/rooms/a", extensions=extension)
        connection.put({"type": "websocket.disconnect", "code": 1006})
        await connection.handler
        assert connection.sent[0]["type"] == "websocket.http.response.start"

    run(main())
    assert disconnects(registry) == {}


@pytest.mark.parametrize("transport", ["websocket", "http"])
def test_the_end_that_the_server_makes_is_none_of_the_clients(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, transport: str
) -> None:
    # A server may wait in its last send, for the client's close frame or for a log. Whoever receives meanwhile, the
    # watch for one, sees the disconnect before that send has returned.
    kind, path, _ = address(transport)

    async def handle(receive: Receive, send: Send) -> None:
        await start_of(transport, receive, send)
        await asyncio.sleep(2)
        await send({"type": "websocket.close", "code": 1000} if kind == "websocket" else LAST)

    async def main() -> None:
        connection = wire(app_with(outlive, handle), kind, path)
        await asyncio.sleep(1.5)
        assert connection.receivers == 1

        async def closing() -> None:
            connection.put({"type": "websocket.disconnect", "code": 1000} if kind == "websocket" else GONE)
            await asyncio.sleep(0.1)

        connection.while_sending = closing
        await connection.handler

    run(main())
    assert disconnects(registry) == {}


def test_a_file_that_the_server_sends_itself_is_a_whole_response(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, tmp_path: Any
) -> None:
    report = tmp_path / "report.csv"
    report.write_text("user,lines\n")

    async def handle(receive: Receive, send: Send) -> None:
        scope = {"type": "http", "method": "GET", "headers": [], "extensions": {"http.response.pathsend": {}}}
        await FileResponse(report)(scope, receive, send)
        while (await receive())["type"] != "http.disconnect":
            pass

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "http", "/items/1")
        while not connection.sent or connection.sent[-1]["type"] != "http.response.pathsend":  # noqa: ASYNC110 - a thread opens the file
            await asyncio.sleep(0)
        connection.put(GONE)
        await connection.handler

    run(main())
    assert disconnects(registry) == {}


# Gauges, durations and labels


@transports
def test_open_connections_are_counted_by_route_and_transport(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, transport: str
) -> None:
    kind, path, route = address(transport)

    async def handle(receive: Receive, send: Send) -> None:
        await start_of(transport, receive, send)
        await asyncio.sleep(1)

    async def main() -> None:
        app = app_with(outlive, handle)
        connections = [wire(app, kind, path) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert found(registry, "outlive_connections", "route", "transport") == {(route, transport): 3}
        await asyncio.gather(*[connection.handler for connection in connections])

    run(main())
    assert found(registry, "outlive_connections", "route", "transport") == {}


def test_a_response_becomes_an_event_stream_when_it_says_so(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await asyncio.sleep(1)
        await send(EVENTS)
        await asyncio.sleep(1)
        await send(LAST)

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "http", "/items/1")
        # A handler that neither receives nor sends is counted too, and soon.
        await asyncio.sleep(0.1)
        assert found(registry, "outlive_connections", "route", "transport") == {(ITEM, "http"): 1}
        await asyncio.sleep(1)
        assert found(registry, "outlive_connections", "route", "transport") == {(ITEM, "sse"): 1}
        await connection.handler

    run(main())
    counted = found(registry, "outlive_connection_duration_seconds_count", "route", "transport")
    assert counted == {(ITEM, "sse"): 1}


def test_times_go_to_the_last_byte_and_not_to_the_end_of_the_tail(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await asyncio.sleep(1)
        await send(START)
        await asyncio.sleep(1)
        await send(LAST)
        await asyncio.sleep(30)

    async def main() -> None:
        await wire(app_with(outlive, handle), "http", "/items/1").handler

    run(main())
    for name in ("outlive_http_request_duration_seconds_sum", "outlive_connection_duration_seconds_sum"):
        assert found(registry, name, "route") == {(ITEM,): pytest.approx(2.0, abs=1e-3)}, name


def test_a_websocket_lasts_until_its_disconnect_and_is_no_http_request(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await receive()
        await asyncio.sleep(30)

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        await asyncio.sleep(3)
        connection.put(LEFT)
        await connection.handler

    run(main())
    durations = found(registry, "outlive_connection_duration_seconds_sum", "route", "transport")
    assert durations == {(ROOM, "websocket"): pytest.approx(3.0, abs=1e-3)}
    assert found(registry, "outlive_http_request_duration_seconds_count", "route") == {}


def test_clients_cannot_make_methods_up(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    app = FastAPI()
    outlive.install(app)

    @app.get("/items/{item}")
    async def item(item: str) -> None: ...

    async def main() -> None:
        for method in ("GET", "BREW", "get", "\u00fcber", "X" * 1000, ""):
            await wire(app, "http", "/items/1", method=method).handler

    run(main())
    assert found(registry, "outlive_http_request_duration_seconds_count", "method", "status") == {
        ("GET", "200"): 1,
        ("_OTHER", "405"): 5,
    }


def test_a_handler_without_a_response_has_a_status_of_its_own(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    async def handle(receive: Receive, send: Send) -> None: ...

    async def main() -> None:
        await wire(app_with(outlive, handle), "http", "/items/1").handler

    run(main())
    assert found(registry, "outlive_http_request_duration_seconds_count", "status") == {("none",): 1}


# How a handler is told


def test_a_websocket_handler_that_only_sends_is_told(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    app = FastAPI()
    outlive.install(app)
    told: list[float] = []

    @app.websocket("/rooms/{room}")
    async def room(ws: WebSocket, room: str) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_text("tick")
                await asyncio.sleep(0.1)
        except WebSocketDisconnect:
            told.append(asyncio.get_running_loop().time())

    async def main() -> None:
        connection = wire(app, "websocket", "/rooms/a")
        await asyncio.sleep(3)
        connection.put(LEFT)
        await asyncio.wait_for(connection.handler, 1)

    run(main())
    assert 3 <= told[0] <= 4
    assert disconnects(registry) == {(ROOM, "websocket", "client_closed"): 1}


def test_a_client_that_leaves_at_once_is_told_within_a_second(run: Any, outlive: Outlive, wire: Any) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        while True:
            await send(LINE)
            await asyncio.sleep(0.05)

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        connection.put(LEFT)
        with pytest.raises(OSError, match="the client has gone"):
            await asyncio.wait_for(connection.handler, 1)

    run(main())


def test_a_stream_that_only_sends_is_told_where_the_specification_wants_it(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    app = FastAPI()
    outlive.install(app)
    closed: list[bool] = []

    @app.get("/items/{item}")
    async def item(item: str) -> StreamingResponse:
        async def ticks() -> Any:
            try:
                while True:
                    yield b"tick"
                    await asyncio.sleep(0.1)
            finally:
                closed.append(True)

        return StreamingResponse(ticks())

    async def main() -> None:
        connection = wire(app, "http", "/items/1", spec_version="2.4")
        await asyncio.sleep(2)
        connection.put(GONE)
        await asyncio.wait([connection.handler], timeout=1)
        assert connection.handler.done()
        connection.handler.exception()

    run(main())
    assert disconnects(registry) == {(ITEM, "http", "client_lost"): 1}


@pytest.mark.parametrize("spec_version", ["2.0", "2.3", "2.4"])
def test_a_plain_request_that_takes_long_ends_as_it_would_and_its_client_is_missed(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, spec_version: str
) -> None:
    app = FastAPI()
    outlive.install(app)

    @app.get("/items/{item}")
    async def item(item: str) -> str:
        await asyncio.sleep(10)
        return item

    async def main() -> None:
        connection = wire(app, "http", "/items/1", spec_version=spec_version)
        await asyncio.sleep(2)
        connection.put(GONE)
        await asyncio.sleep(1)
        assert disconnects(registry) == {(ITEM, "http", "client_lost"): 1}
        await connection.handler  # nobody is there to stop, and nothing to log

    run(main())
    durations = found(registry, "outlive_http_request_duration_seconds_sum", "route")
    assert durations == {(ITEM,): pytest.approx(2.0, abs=1e-3)}


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
def test_a_client_that_leaves_is_no_error_of_the_servers(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any, spec_version: str
) -> None:
    # Or anybody could raise the rate of 5xx, and the alarm on it, by going away.
    app = FastAPI()
    outlive.install(app)

    @app.post("/items/{item}")
    async def item(item: str, request: Request) -> None:
        await request.body()

    async def main() -> None:
        connection = wire(app, "http", "/items/1", method="POST", spec_version=spec_version, incoming=[GONE])
        with pytest.raises(ClientDisconnect):
            await connection.handler

    run(main())
    assert disconnects(registry) == {(ITEM, "http", "client_lost"): 1}
    statuses = found(registry, "outlive_http_request_duration_seconds_count", "status")
    assert statuses == {("none",): 1}


def test_a_handler_that_was_told_once_is_not_told_again(run: Any, outlive: Outlive, wire: Any) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await asyncio.sleep(2)
        assert await receive() == LEFT
        await send(LINE)  # what comes of it is the server's to say

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        connection.put(LEFT)
        await connection.handler
        assert connection.sent == [ACCEPT, LINE]

    run(main())


def test_a_kept_message_is_the_handlers_next_one(run: Any, outlive: Outlive, wire: Any) -> None:
    heard: list[Message] = []
    lines: list[Message] = [{"type": "websocket.receive", "text": str(n)} for n in range(5)]

    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await asyncio.sleep(2)
        while heard[-1:] != [LEFT]:
            heard.append(await receive())

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        await asyncio.sleep(1.5)
        connection.put(*lines, LEFT)
        await connection.handler

    run(main())
    assert heard == [*lines, LEFT]
    # The same objects: nothing was copied on the way.
    assert all(message is line for message, line in zip(heard, lines, strict=False))


class Done(asyncio.Future[None]):
    """What an eager task factory returns for a coroutine that had nothing to wait for."""

    def set_name(self, name: str) -> None: ...


def test_a_watch_that_ends_as_it_begins_holds_nobody_up(run: Any, outlive: Outlive, wire: Any) -> None:
    # An eager task factory (Python 3.12) runs a task before create_task returns.
    heard: list[Message] = []
    begun: list[Any] = []
    line: Message = {"type": "websocket.receive", "text": "the line"}

    def eager(loop: Any, coroutine: Any, **kwargs: Any) -> Any:
        if "_keep" not in coroutine.__qualname__:
            return asyncio.Task(coroutine, loop=loop, **kwargs)
        with pytest.raises(StopIteration):
            coroutine.send(None)  # the message is there, so there is nothing to wait for
        done = Done(loop=loop)
        done.set_result(None)
        begun.append(done)
        return done

    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await asyncio.sleep(2)
        heard.append(await receive())
        heard.append(await receive())

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(eager)
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        connection.put(line, LEFT)
        await asyncio.wait_for(connection.handler, 10)

    run(main())
    assert begun
    assert heard == [line, LEFT]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        pytest.param({"type": "websocket.receive", "text": "x"}, 16, id="by number"),
        pytest.param({"type": "websocket.receive", "text": "x" * 30_000}, 3, id="by characters"),
        pytest.param({"type": "websocket.receive", "bytes": b"x" * 70_000}, 1, id="by bytes"),
    ],
)
def test_what_is_kept_is_bounded(run: Any, outlive: Outlive, wire: Any, line: Message, kept: int) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await asyncio.sleep(15)
        for _ in range(kept):
            await receive()
        await asyncio.sleep(30)

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        connection.put(*[line] * 40)
        await asyncio.sleep(10)
        # The others are the server's, which stops reading from the client when it has too many.
        assert connection.received == [{"type": "websocket.connect"}, *[line] * kept]
        await asyncio.sleep(10)
        # The handler has taken them, and again listens no more.
        assert connection.received == [{"type": "websocket.connect"}, *[line] * 2 * kept]
        connection.handler.cancel()
        await asyncio.wait([connection.handler])

    run(main())


def test_a_client_that_has_said_something_is_missed_by_a_handler_that_only_sends(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        while True:
            await send(LINE)
            await asyncio.sleep(0.1)

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        connection.put(*[{"type": "websocket.receive", "text": "subscribe"}] * 3)
        await asyncio.sleep(5)
        connection.put(LEFT)
        with pytest.raises(OSError, match="the client has gone"):
            await asyncio.wait_for(connection.handler, 1)

    run(main())
    assert disconnects(registry) == {("/rooms/{room}", "websocket", "client_closed"): 1}


def test_a_handler_that_listens_again_receives_by_itself(run: Any, outlive: Outlive, wire: Any) -> None:
    # A watch that went on would cost every message a turn of the event loop.
    line: Message = {"type": "websocket.receive", "text": "x"}
    from_the_server: list[bool] = []

    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await asyncio.sleep(2)
        handler = asyncio.current_task()
        for _ in range(4):
            assert await receive() == line
            from_the_server.append(handler is connections[0].taker)

    connections: list[Any] = []

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        connections.append(connection)
        for _ in range(4):
            await asyncio.sleep(1)
            connection.put(line)
        await connection.handler

    run(main())
    # The second of them is what the watch was waiting for when the handler had taken the first.
    assert from_the_server == [False, False, True, True]


def test_a_body_is_not_read_ahead_of_the_handler(run: Any, outlive: Outlive, wire: Any) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await asyncio.sleep(30)

    async def main() -> None:
        app = app_with(outlive, handle)
        for header in ((b"content-length", b"5"), (b"transfer-encoding", b"chunked")):
            part = {"type": "http.request", "body": b"x", "more_body": True}
            connection = wire(app, "http", "/items/1", method="POST", headers=[header], incoming=[part] * 5)
            await asyncio.sleep(5)
            assert not connection.received
            assert not connection.receivers
            connection.handler.cancel()
            await asyncio.wait([connection.handler])

    run(main())


def test_a_body_that_no_header_announced_is_not_collected(run: Any, outlive: Outlive, wire: Any) -> None:
    # HTTP/2 needs neither content-length nor transfer-encoding for a body.
    async def handle(receive: Receive, send: Send) -> None:
        await asyncio.sleep(30)

    async def main() -> None:
        part = {"type": "http.request", "body": b"x" * 65536, "more_body": True}
        connection = wire(app_with(outlive, handle), "http", "/items/1", incoming=[part] * 10)
        await asyncio.sleep(20)
        assert len(connection.received) <= 1
        connection.handler.cancel()
        await asyncio.wait([connection.handler])

    run(main())


def test_once_the_body_is_read_the_client_is_watched_for(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    app = FastAPI()
    outlive.install(app)

    @app.post("/items/{item}")
    async def item(item: str, request: Request) -> None:
        assert await request.body() == b"body"
        await asyncio.sleep(10)

    async def main() -> None:
        connection = wire(
            app,
            "http",
            "/items/1",
            method="POST",
            headers=[(b"content-length", b"4")],
            incoming=[{"type": "http.request", "body": b"body", "more_body": False}],
        )
        await asyncio.sleep(2)
        connection.put(GONE)
        await asyncio.sleep(1)
        assert disconnects(registry) == {(ITEM, "http", "client_lost"): 1}
        await connection.handler

    run(main())


@pytest.mark.parametrize("cancel_after_arrival", [False, True])
def test_a_handler_cancelled_while_it_takes_a_kept_message_loses_none(
    run: Any, outlive: Outlive, wire: Any, cancel_after_arrival: bool
) -> None:
    heard: list[Message] = []
    line: Message = {"type": "websocket.receive", "text": "the line"}

    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await asyncio.sleep(2)
        taking = asyncio.ensure_future(receive())
        if cancel_after_arrival:
            # The message is there, and the taker about to wake: cancelled in the same turn of the loop.
            await asyncio.sleep(1)
            for _ in range(10):
                if connections[0].received[-1:] == [line]:
                    break
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(0.5)
        taking.cancel()
        await asyncio.wait([taking])
        heard.append(taking.result() if not taking.cancelled() else await receive())

    connections: list[Any] = []

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        connections.append(connection)
        await asyncio.sleep(3)
        connection.put(line)
        await connection.handler

    run(main())
    assert heard == [line]


def test_a_handler_that_receives_is_not_watched(run: Any, outlive: Outlive, wire: Any) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await receive()

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        for _ in range(20):
            await asyncio.sleep(0.25)
            assert connection.receivers == 1
        connection.put(LEFT)
        await connection.handler

    run(main())


def test_of_two_that_receive_one_may_stop(run: Any, outlive: Outlive, wire: Any) -> None:
    # As in Request.is_disconnected beside a response that listens for the disconnect.
    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        listening = asyncio.ensure_future(receive())
        await asyncio.sleep(0.1)
        polling = asyncio.ensure_future(receive())
        await asyncio.sleep(0.1)
        polling.cancel()
        await listening

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        await asyncio.sleep(5)
        assert connection.receivers == 1
        connection.put(LEFT)
        await connection.handler

    run(main())


def test_without_watch_nobody_receives_for_the_handler(
    run: Any, registry: CollectorRegistry, wire: Any
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        for _ in range(50):
            await send(LINE)
            await asyncio.sleep(0.1)

    async def main() -> None:
        connection = wire(app_with(Outlive(registry=registry, watch=False), handle), "websocket", "/rooms/a")
        connection.put(LEFT)
        await asyncio.sleep(4)
        assert not connection.receivers
        await connection.handler
        assert len(connection.sent) == 51

    run(main())
    assert disconnects(registry) == {}


def test_a_failing_receive_is_the_handlers_to_hear(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    fails = [True]

    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await asyncio.sleep(2)
        with pytest.raises(RuntimeError, match="the server's own"):
            await receive()
        fails.clear()
        await receive()

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        await asyncio.sleep(0.1)

        async def get() -> Message:
            if fails:
                raise RuntimeError("the server's own")
            return LEFT

        connection.incoming.get = get
        await connection.handler

    run(main())
    assert disconnects(registry) == {(ROOM, "websocket", "client_closed"): 1}


def test_a_disconnect_after_a_watch_that_came_to_nothing_counts(
    run: Any, outlive: Outlive, registry: CollectorRegistry, wire: Any
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await start_of("websocket", receive, send)
        await asyncio.sleep(1)
        await receive()

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "websocket", "/rooms/a")
        await asyncio.sleep(0.1)
        again = connection.incoming.get

        async def fail_once() -> Message:
            connection.incoming.get = again
            await asyncio.sleep(2)
            raise RuntimeError

        connection.incoming.get = fail_once
        await asyncio.sleep(4)
        connection.put(LEFT)
        await connection.handler

    run(main())
    assert disconnects(registry) == {(ROOM, "websocket", "client_closed"): 1}


def test_messages_to_the_client_go_through_as_they_are(run: Any, outlive: Outlive, wire: Any) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        for message in (EVENTS, CHUNK, CHUNK, LAST):
            await send(message)

    async def main() -> None:
        connection = wire(app_with(outlive, handle), "http", "/items/1")
        await connection.handler
        assert [id(message) for message in connection.sent] == [id(m) for m in (EVENTS, CHUNK, CHUNK, LAST)]

    run(main())


# What a fuzz has found


def test_a_disconnect_has_the_route_of_its_connection_in_a_mounted_app_too(
    run: Any, outlive: Outlive, registry: CollectorRegistry, lifespan: Any, wire: Any
) -> None:
    app = FastAPI()
    outlive.install(app)

    async def raw(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await receive()

    app.mount("/raw", raw)

    async def main() -> None:
        async with lifespan(app):
            await wire(app, "websocket", "/raw/a", incoming=[{"type": "websocket.connect"}, LEFT]).handler

    run(main())
    assert disconnects(registry) == {("/raw/{path}", "websocket", "client_closed"): 1}


@pytest.mark.parametrize("status", [[], "200", None, -1, 0, 10**9, 200.5])
def test_what_is_no_status_becomes_no_label(
    run: Any, outlive: Outlive, registry: CollectorRegistry, lifespan: Any, wire: Any, status: Any
) -> None:
    async def handle(receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send(LAST)

    async def main() -> None:
        app = app_with(outlive, handle)
        async with lifespan(app):
            await wire(app, "http", "/items/a").handler

    run(main())
    assert found(registry, "outlive_http_request_duration_seconds_count", "status") == {("none",): 1}
