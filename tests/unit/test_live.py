"""The live page's server: what it tells, to how many, and that it holds up nothing."""

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from outlive import DeclarationError, Outcome, Outlive
from outlive.live import LivePage, feed, history, page
from outlive.telemetry.flows import FlowBuffer

Serving = Callable[..., AbstractAsyncContextManager[FastAPI]]


class Service:
    """An app with a live page, a task that ends as it is told, and a room whose leaving starts it."""

    def __init__(self, registry: CollectorRegistry, **settings: Any) -> None:
        self.flows = FlowBuffer(kept=10)
        provider = TracerProvider()
        provider.add_span_processor(self.flows)
        live = LivePage(self.flows, **settings)
        self.outlive = Outlive(
            registry=registry, tracer_provider=provider, live=live, drain_timeout=10.0, cancel_grace=1.0
        )
        self.app = FastAPI()
        self.outlive.install(self.app)

        @self.outlive.task(timeout=5.0)
        async def save(seconds: float = 0.0) -> None:
            await asyncio.sleep(seconds)
            if seconds == 0.0:
                raise LookupError

        @self.app.websocket("/rooms/{room}")
        async def room(ws: WebSocket, room: str) -> None:
            await ws.accept()
            async for _ in ws.iter_text():
                pass
            save.submit()

        self.save = save


@pytest.fixture(autouse=True)
def _without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time doesn't wait for threads."""

    async def here(call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    monkeypatch.setattr(page, "run_in_threadpool", here)


@pytest.fixture
def service(registry: CollectorRegistry) -> Service:
    return Service(registry)


def messages(connection: Any) -> list[tuple[str, dict[str, Any]]]:
    """The events of a feed so far."""
    return [
        (event.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for event, data in (block.split("\n") for block in connection.body.decode().split("\n\n") if block)
    ]


async def until(condition: Callable[[], object]) -> None:
    """Let virtual time pass until the condition holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - time is virtual
            await asyncio.sleep(0.05)


async def leave_a_room(wire: Any, app: FastAPI) -> None:
    connection = wire(app, "websocket", "/rooms/a")
    connection.put({"type": "websocket.disconnect", "code": 1000, "reason": ""})
    await connection.handler


async def told(wire: Any, app: FastAPI, path: str, **more: Any) -> Any:
    connection = wire(app, "http", path, **more)
    await connection.handler
    assert connection.status == 200
    return json.loads(connection.body)


@pytest.mark.parametrize("path", ["", "/", "//", "outlive/", "/outlive"])
def test_a_path_that_cannot_work_is_refused(path: str) -> None:
    with pytest.raises(DeclarationError, match="such as '/outlive/'"):
        LivePage(path=path)


def test_a_page_for_nobody_is_refused() -> None:
    with pytest.raises(DeclarationError, match="viewers"):
        LivePage(viewers=0)


def test_a_page_shows_one_outlive(registry: CollectorRegistry) -> None:
    live = LivePage()
    Outlive(registry=registry, live=live)
    with pytest.raises(DeclarationError, match="make one for each"):
        Outlive(registry=registry, live=live)


def test_the_state_is_what_the_metrics_are(
    run: Any, service: Service, serving: Serving, wire: Any, registry: CollectorRegistry
) -> None:
    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            await leave_a_room(wire, app)
            service.save.submit(3.0)
            open_room = wire(app, "websocket", "/rooms/b")
            await asyncio.sleep(1)
            state = await told(wire, app, "/outlive/state")
            assert (state["state"], state["submitted"], state["running"]) == ("open", 2, 1)
            assert {outcome: number for outcome, number in state["outcomes"].items() if number} == {
                "failed": 1
            }
            (task,) = state["tasks"]
            assert (task["name"], task["timeout"], task["running"]) == ("save", 5.0, 1)
            for outcome, number in task["outcomes"].items():
                labels = {"task": "save", "outcome": outcome}
                assert registry.get_sample_value("outlive_runs_total", labels) == number
            assert sum(task["durations"]) == 1
            assert len(task["durations"]) == len(state["bounds"]) + 1
            (room,) = state["routes"]
            assert (room["route"], room["transport"], room["open"]) == ("/rooms/{room}", "websocket", 1)
            assert room["disconnects"]["client_closed"] == 1
            assert sum(room["tail"]) == 1
            open_room.put({"type": "websocket.disconnect", "code": 1000, "reason": ""})
            await open_room.handler

    run(main())


def test_the_history_is_kept_while_nobody_looks_and_is_bounded(
    run: Any, service: Service, serving: Serving, wire: Any
) -> None:
    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            for _ in range(100):
                service.save.submit()
                await asyncio.sleep(history.INTERVAL)
            samples = (await told(wire, app, "/outlive/state"))["history"]
            assert len(samples) == history.SPAN / history.INTERVAL + 1
            failed = [sample[1 + list(Outcome).index(Outcome.FAILED)] for sample in samples]
            assert failed == list(range(failed[0], failed[0] + len(failed)))

    run(main())


def test_the_flows_are_told_and_found(run: Any, service: Service, serving: Serving, wire: Any) -> None:
    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            await leave_a_room(wire, app)
            await leave_a_room(wire, app)
            await asyncio.sleep(1)
            newest, oldest = (await told(wire, app, "/outlive/flows"))["flows"]
            assert (newest["route"], newest["transport"], newest["cause"]) == (
                "/rooms/{room}",
                "websocket",
                "client_closed",
            )
            root, saving = newest["spans"]
            assert (root["name"], root["start"], root["error"]) == ("disconnect /rooms/{room}", 0, False)
            assert (saving["name"], saving["error"]) == ("save", True)
            assert saving["parent_id"] == root["span_id"]
            assert saving["attributes"]["outlive.outcome"] == "failed"
            found = await told(wire, app, "/outlive/flows", query=f"trace_id={oldest['trace_id']}".encode())
            assert found["flows"] == [oldest]
            assert (await told(wire, app, "/outlive/flows", query=b"trace_id=0"))["flows"] == []

    run(main())


@pytest.mark.parametrize(
    ("query", "flows"),
    [
        (b"", 3),
        (b"most=2", 2),
        (b"most=0", 0),
        (b"most=99999", 3),
        (b"most=999999999999999999999999", 3),
        (b"most=-1", 3),
        (b"most=1e3", 3),
        (b"most=", 3),
        (b"most=%D9%A3", 3),
        (b"most=%C2%B2", 3),
        (b"most=%00", 3),
        (b"most=%ff", 3),
        (b"most=3&most=1", 1),
        (b"most[]=3", 3),
        (b"trace_id=%ff%00", 0),
        (b"&&&=", 3),
    ],
)
def test_the_flows_bear_with_any_query(
    run: Any, service: Service, serving: Serving, wire: Any, query: bytes, flows: int
) -> None:
    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            for _ in range(3):
                await leave_a_room(wire, app)
            await asyncio.sleep(1)
            assert len((await told(wire, app, "/outlive/flows", query=query))["flows"]) == flows

    run(main())


def test_a_number_that_json_cannot_hold_spoils_nothing(
    run: Any, serving: Serving, wire: Any, service: Service
) -> None:
    provider = TracerProvider()
    provider.add_span_processor(service.flows)
    span = provider.get_tracer("outlive").start_span("disconnect /a", attributes={"ratio": float("nan")})
    span.end()

    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            (flow,) = (await told(wire, app, "/outlive/flows"))["flows"]
            assert flow["spans"][0]["attributes"] == {"ratio": "nan"}

    run(main())


def test_the_page_and_its_files(run: Any, service: Service, serving: Serving, wire: Any) -> None:
    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            for name, kind in {
                "": "text/html",
                "main.js": "text/javascript",
                "style.css": "text/css",
            }.items():
                shown = wire(app, "http", f"/outlive/{name}")
                await shown.handler
                headers = dict(shown.sent[0]["headers"])
                assert shown.status == 200
                assert headers[b"content-type"].startswith(kind.encode())
                assert b"default-src 'none'" in headers[b"content-security-policy"]
                assert headers[b"x-content-type-options"] == b"nosniff"
                again = wire(app, "http", f"/outlive/{name}", headers=[(b"if-none-match", headers[b"etag"])])
                await again.handler
                assert (again.status, again.body) == (304, b"")
            bare = wire(app, "http", "/behind/outlive", root_path="/behind")
            await bare.handler
            assert bare.status == 308
            assert (b"location", b"outlive/") in bare.sent[0]["headers"]
            for path in ("package.json", "../page.py", "nothing"):
                other = wire(app, "http", f"/outlive/{path}")
                await other.handler
                assert other.status == 404
            wrong = wire(app, "http", "/outlive/", method="POST")
            await wrong.handler
            assert wrong.status == 405
            assert service.outlive.counts.submitted == 0

    run(main())


def test_the_feed_says_hello_and_then_what_is_new(
    run: Any, service: Service, serving: Serving, wire: Any, registry: CollectorRegistry
) -> None:
    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            await leave_a_room(wire, app)
            await asyncio.sleep(1)
            viewer = wire(app, "http", "/outlive/feed")
            await until(lambda: len(messages(viewer)) >= 2)
            (hello, first), (state, second), *_ = messages(viewer)
            assert (hello, state) == ("hello", "state")
            assert [flow["route"] for flow in first["flows"]] == ["/rooms/{room}"]
            assert first["objective"] == 0.999
            assert second["flows"] == []
            await leave_a_room(wire, app)
            await until(lambda: any(news["flows"] for _, news in messages(viewer)[2:]))
            # A viewer is no connection.
            assert (
                registry.get_sample_value("outlive_connections", {"route": "unmatched", "transport": "sse"})
                is None
            )
            viewer.put({"type": "http.disconnect"})
            await viewer.handler

    run(main())


def test_one_message_is_made_for_all_and_none_while_nobody_looks(
    run: Any, service: Service, serving: Serving, wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []
    live = service.outlive._live
    assert live is not None
    news = live._feed._news

    async def counting() -> bytes:
        made.append(await news())
        return made[-1]

    monkeypatch.setattr(live._feed, "_news", counting)

    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            await asyncio.sleep(10)
            assert made == []
            viewers = [wire(app, "http", "/outlive/feed") for _ in range(5)]
            await until(lambda: all(len(messages(viewer)) >= 4 for viewer in viewers))
            heard = [[event for event in messages(viewer) if event[0] == "state"] for viewer in viewers]
            assert len(made) <= max(map(len, heard))
            for viewer in viewers:
                viewer.put({"type": "http.disconnect"})
                await viewer.handler
            await asyncio.sleep(2 * feed.TICK)
            before = len(made)
            await asyncio.sleep(10)
            assert len(made) == before

    run(main())


def test_a_viewer_that_does_not_read_is_dropped_and_disturbs_nobody(
    run: Any, service: Service, serving: Serving, wire: Any
) -> None:
    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            deaf, other = wire(app, "http", "/outlive/feed"), wire(app, "http", "/outlive/feed")
            await until(lambda: len(messages(deaf)) >= 2)
            never = asyncio.Event()

            async def block() -> None:
                await never.wait()

            deaf.while_sending = block
            await asyncio.wait_for(deaf.handler, 60)
            heard = len(messages(other))
            await until(lambda: len(messages(other)) >= heard + 3)
            other.put({"type": "http.disconnect"})
            await other.handler

    run(main())


def test_viewers_are_bounded(run: Any, registry: CollectorRegistry, serving: Serving, wire: Any) -> None:
    service = Service(registry, viewers=2)

    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            viewers = [wire(app, "http", "/outlive/feed") for _ in range(3)]
            await viewers[2].handler
            assert viewers[2].status == 503
            viewers[0].put({"type": "http.disconnect"})
            await viewers[0].handler
            third = wire(app, "http", "/outlive/feed")
            await until(lambda: messages(third))
            for viewer in (viewers[1], third):
                viewer.put({"type": "http.disconnect"})
                await viewer.handler

    run(main())


def test_a_drain_is_shown_while_it_happens_and_then_the_feed_ends(
    run: Any, service: Service, serving: Serving, wire: Any
) -> None:
    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            viewer = wire(app, "http", "/outlive/feed")
            await until(lambda: messages(viewer))
            service.save.submit(3.0)
            # As a server does that tells of its stop and waits for what is open, without a limit.
            service.outlive.begin_drain()
            began = asyncio.get_running_loop().time()
            await viewer.handler
            took = asyncio.get_running_loop().time() - began
            assert 2.99 < took < 3.0 + 2 * feed.TICK_IN_DRAIN + 0.1
            *shown, (last, end) = messages(viewer)
            draining = [news for _, news in shown if news["state"] == "draining"]
            assert len(draining) > 5
            assert {news["running"] for news in draining} == {1}
            assert (last, end["running"]) == ("end", 0)
            assert viewer.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        assert service.outlive.counts.outcomes[Outcome.COMPLETED] == 1

    run(main())


def test_a_feed_takes_its_time_from_the_drain_and_not_on_top_of_it(
    run: Any, registry: CollectorRegistry, serving: Serving, wire: Any
) -> None:
    service = Service(registry)

    @service.outlive.task(timeout=100.0)
    async def hang() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            viewer = wire(app, "http", "/outlive/feed")
            await until(lambda: messages(viewer))
            hang.submit()
            service.outlive.begin_drain()
            began = asyncio.get_running_loop().time()
            await viewer.handler
        # drain_timeout is 10 s, a second of it for flushing.
        assert asyncio.get_running_loop().time() - began <= 9.0 + feed.TICK_IN_DRAIN + 0.1
        assert service.outlive.counts.outcomes[Outcome.CANCELLED] == 1

    run(main())


def test_a_feed_does_not_end_while_others_are_connected(
    run: Any, service: Service, serving: Serving, wire: Any
) -> None:
    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            room = wire(app, "websocket", "/rooms/a")
            viewer = wire(app, "http", "/outlive/feed")
            await until(lambda: messages(viewer))
            service.outlive.begin_drain()
            await asyncio.sleep(30)
            assert not viewer.handler.done()
            room.put({"type": "websocket.disconnect", "code": 1000, "reason": ""})
            await viewer.handler
            await room.handler

    run(main())


class StoppingServer:
    """What uvicorn is, as far as its signal handler tells."""

    should_exit = False

    def handle_exit(self, *_: object) -> None:
        self.should_exit = True


@pytest.fixture
def server() -> Iterator[StoppingServer]:
    server = StoppingServer()
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    yield server
    signal.signal(signal.SIGTERM, before)


def test_a_stop_that_nobody_tells_of_is_noticed(
    run: Any, service: Service, serving: Serving, wire: Any, server: StoppingServer
) -> None:
    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            viewer = wire(app, "http", "/outlive/feed")
            await until(lambda: len(messages(viewer)) >= 3)
            signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(viewer.handler, 2 * feed.TICK)
            assert service.outlive.state == "draining"

    run(main())


def test_the_feed_goes_on_while_a_server_that_drains_still_serves(
    run: Any, service: Service, serving: Serving, wire: Any, server: StoppingServer
) -> None:
    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            viewer = wire(app, "http", "/outlive/feed")
            await until(lambda: messages(viewer))
            service.outlive.begin_drain()
            await asyncio.sleep(30)
            assert not viewer.handler.done()
            server.should_exit = True
            await asyncio.wait_for(viewer.handler, 1)

    run(main())


def test_the_feed_ends_when_all_is_closed(run: Any, service: Service, serving: Serving, wire: Any) -> None:
    async def main() -> None:
        async with serving(service.outlive, service.app) as app:
            viewer = wire(app, "http", "/outlive/feed")
            await until(lambda: messages(viewer))
        await asyncio.wait_for(viewer.handler, 5)
        name, news = messages(viewer)[-1]
        assert (name, news["state"]) == ("end", "closed")

    run(main())


def test_a_page_without_flows_has_numbers(
    run: Any, registry: CollectorRegistry, serving: Serving, wire: Any
) -> None:
    outlive = Outlive(registry=registry, live=LivePage(path="/inside/live/"))

    async def main() -> None:
        async with serving(outlive) as app:
            assert (await told(wire, app, "/inside/live/flows"))["flows"] == []
            assert (await told(wire, app, "/inside/live/flows", query=b"trace_id=1"))["flows"] == []
            assert (await told(wire, app, "/inside/live/state"))["state"] == "open"

    run(main())
