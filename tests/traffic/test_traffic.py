"""The traffic against a small server that speaks the service's wire formats, run by a real uvicorn."""

from __future__ import annotations

import asyncio
import itertools
import json
import queue
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

from outlive_service.behaviours import BEHAVIOURS, WEIGHTS
from outlive_service.sights import CompletionVisit, ExportVisit, RoomVisit
from outlive_service.traffic import Traffic
from outlive_service.visits import Visit

ROWS = 60
PATIENCE = 10.0


@dataclass
class Ended:
    """How the server saw a connection end."""

    user: str
    id: str
    what: str
    lines: list[str] = field(default_factory=list)
    code: int = 0
    sent: int = 0
    finished: bool = False


class Fake:
    """A server in a thread of its own, and what it saw."""

    def __init__(self, server: uvicorn.Server, url: str, ended: queue.Queue[Ended], heard: set[str]) -> None:
        self.server = server
        self.url = url
        self.ended = ended
        self.heard = heard

    def next_ended(self) -> Ended:
        return self.ended.get(timeout=PATIENCE)

    def all_ended(self, count: int) -> list[Ended]:
        return [self.next_ended() for _ in range(count)]


def application(ended: queue.Queue[Ended], heard: set[str], *, refuse: bool = False) -> FastAPI:
    app = FastAPI()

    @app.websocket("/rooms/{room}")
    async def talk(websocket: WebSocket, room: str, user: str) -> None:
        if refuse:
            return await websocket.close(1008)
        session = Ended(user, uuid4().hex, room)
        await websocket.accept()
        await websocket.send_json({"type": "welcome", "session": session.id, "present": [user]})
        # What others say is no echo.
        await websocket.send_json({"type": "line", "session": "other", "user": "x", "n": 0, "text": "?"})
        await websocket.send_json({"type": "joined", "user": "x"})
        try:
            while True:
                text = await websocket.receive_text()
                session.lines.append(text)
                heard.add(user)
                n = len(session.lines) - 1
                line = {"type": "line", "session": session.id, "user": user, "n": n, "text": text}
                await websocket.send_json(line)
        except WebSocketDisconnect as error:
            session.code = error.code
        finally:
            ended.put(session)

    @app.post("/completions")
    async def complete(request: Request) -> Response:
        if refuse:
            return Response(status_code=503)
        question = await request.json()
        answer = Ended(question["user"], uuid4().hex, "completion")
        events = answer_events(answer, question["max_tokens"], ended)
        return StreamingResponse(events, media_type="text/event-stream")

    @app.get("/exports/usage.csv")
    async def export(user: str) -> Response:
        if refuse:
            return Response(status_code=503)
        report = Ended(user, uuid4().hex, "export")
        headers = {"X-Export-Id": report.id}
        return StreamingResponse(report_rows(report, ended), media_type="text/csv", headers=headers)

    return app


async def answer_events(answer: Ended, tokens: int, ended: queue.Queue[Ended]) -> AsyncIterator[str]:
    try:
        yield f"event: start\ndata: {json.dumps({'id': answer.id})}\n\n"
        for _ in range(tokens):
            answer.sent += 1
            # In two pieces, as a network may cut it.
            yield 'data: {"tok'
            yield 'en":"w "}\n\n'
            await asyncio.sleep(0.001)
        yield f"event: done\ndata: {json.dumps({'tokens': answer.sent})}\n\n"
        answer.finished = True
    finally:
        ended.put(answer)


async def report_rows(report: Ended, ended: queue.Queue[Ended]) -> AsyncIterator[str]:
    try:
        yield "id,tokens\n"
        for n in range(ROWS):
            report.sent += 1
            yield f"{n},1\n"
            await asyncio.sleep(0.001)
        report.finished = True
    finally:
        ended.put(report)


@contextmanager
def serving(*, ping: float = 20.0, refuse: bool = False) -> Iterator[Fake]:
    ended: queue.Queue[Ended] = queue.Queue()
    heard: set[str] = set()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        application(ended, heard, refuse=refuse),
        log_level="critical",
        lifespan="off",
        ws_ping_interval=ping,
        ws_ping_timeout=ping,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield Fake(server, f"http://127.0.0.1:{listener.getsockname()[1]}", ended, heard)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def module_fake() -> Iterator[Fake]:
    with serving() as fake:
        yield fake


@pytest.fixture
def fake(module_fake: Fake) -> Fake:
    """Nothing that an earlier test caused is left: each waits for the ends of its own connections."""
    assert module_fake.ended.empty()
    module_fake.heard.clear()
    return module_fake


def only(behaviour: str, weight: float = 1) -> dict[str, float]:
    return dict.fromkeys(BEHAVIOURS, 0) | {behaviour: weight}


def traffic_for(url: str, behaviour: str, **settings: Any) -> Traffic:
    defaults: dict[str, Any] = {"seed": 1, "pace": 0.02, "rate": 1_000.0, "weights": only(behaviour)}
    return Traffic(url, **defaults | settings)


def visit_once(traffic: Traffic) -> list[Any]:
    """Make the first client's first visit."""
    visit = next(traffic.visits(0))
    asyncio.run(asyncio.wait_for(BEHAVIOURS[visit.behaviour](visit), PATIENCE))
    assert visit.remembered
    return traffic.sights


# Each behaviour, by itself.


def test_room_polite(fake: Fake) -> None:
    (sight,) = visit_once(traffic_for(fake.url, "room-polite"))
    ended = fake.next_ended()
    assert len(ended.lines) > 0
    assert sight == RoomVisit(
        ended.id,
        ended.what,
        ended.user,
        sent=len(ended.lines),
        acknowledged=len(ended.lines),
        ending="closed",
    )
    assert ended.code == 1000


def test_room_abort(fake: Fake) -> None:
    (sight,) = visit_once(traffic_for(fake.url, "room-abort"))
    ended = fake.next_ended()
    assert (sight.session, sight.room, sight.user) == (ended.id, ended.what, ended.user)
    assert sight.acknowledged <= len(ended.lines) <= sight.sent
    # The last word was never waited for.
    assert sight.acknowledged < sight.sent
    assert sight.ending == "aborted"
    assert ended.code in {1005, 1006}


def test_room_half_open_until_the_server_gives_up() -> None:
    with serving(ping=0.1) as fake:
        (sight,) = visit_once(traffic_for(fake.url, "room-half-open", half_open=PATIENCE * 2))
        ended = fake.next_ended()
    assert sight.session == ended.id
    assert sight.ending == "given_up"
    assert ended.code not in {1000, 1001}


def test_room_half_open_is_bounded(fake: Fake) -> None:
    (sight,) = visit_once(traffic_for(fake.url, "room-half-open", half_open=0.05))
    assert fake.next_ended().id == sight.session
    assert sight.ending == "aborted"


def test_who_is_only_slow_to_hear_still_answers_pings() -> None:
    """The counterpart of half-open: without silence, the same server does not give up."""
    with serving(ping=0.1) as fake:
        # At this pace the pauses are longer than two pings.
        (sight,) = visit_once(traffic_for(fake.url, "room-polite", pace=1.0))
        assert fake.next_ended().code == 1000
    assert sight.ending == "closed"


@pytest.mark.parametrize("polite", [True, False])
def test_room_reconnect(fake: Fake, polite: bool) -> None:
    for seed in itertools.count():
        traffic = traffic_for(fake.url, "room-reconnect", seed=seed, return_within=0.05)
        visit = next(traffic.visits(0))
        visit.room()
        if (visit.choices.random() < 0.5) is polite:
            break
    first, second = visit_once(traffic)
    ended = fake.all_ended(2)
    assert {first.session, second.session} == {one.id for one in ended}
    assert first.session != second.session
    assert (first.room, first.user) == (second.room, second.user)
    assert first.ending == ("closed" if polite else "aborted")
    assert second.ending == "closed"


def test_room_slow_reader(fake: Fake) -> None:
    (sight,) = visit_once(traffic_for(fake.url, "room-slow-reader"))
    ended = fake.next_ended()
    assert sight.sent == len(ended.lines) >= 3
    assert sight.acknowledged <= sight.sent
    assert sight.ending == "closed"
    assert max(map(len, ended.lines)) > 1_000
    assert all(len(line) <= 2_000 for line in ended.lines)


def test_completion_full(fake: Fake) -> None:
    (sight,) = visit_once(traffic_for(fake.url, "completion-full"))
    ended = fake.next_ended()
    assert ended.finished
    assert sight == CompletionVisit(ended.id, tokens_received=ended.sent, done=True)


def test_completion_leave(fake: Fake) -> None:
    (sight,) = visit_once(traffic_for(fake.url, "completion-leave"))
    ended = fake.next_ended()
    assert not ended.finished
    assert sight.id == ended.id
    assert 0 < sight.tokens_received <= ended.sent
    assert not sight.done


def test_completion_leave_closes_or_resets() -> None:
    """Told by a bare socket, since no ASGI server tells an application which it was."""

    async def main() -> set[str]:
        endings: asyncio.Queue[str] = asyncio.Queue()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            events = b'event: start\ndata: {"id":"c"}\n\n' + 64 * b'data: {"token":"w "}\n\n'
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head + f"{len(events):x}\r\n".encode() + events + b"\r\n")
            try:
                while await reader.read(65_536):
                    pass
                endings.put_nowait("closed")
            except ConnectionResetError:
                endings.put_nowait("reset")
            writer.close()

        seen: set[str] = set()
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            traffic = traffic_for(f"http://127.0.0.1:{port}", "completion-leave")
            for visit in itertools.islice(traffic.visits(0), 12):
                await BEHAVIOURS[visit.behaviour](visit)
                seen.add(await asyncio.wait_for(endings.get(), PATIENCE))
        return seen

    assert asyncio.run(main()) == {"closed", "reset"}


def test_export_full(fake: Fake) -> None:
    (sight,) = visit_once(traffic_for(fake.url, "export-full"))
    ended = fake.next_ended()
    assert ended.finished
    assert sight == ExportVisit(ended.id, rows_received=ROWS, done=True)


def test_export_leave(fake: Fake) -> None:
    (sight,) = visit_once(traffic_for(fake.url, "export-leave"))
    ended = fake.next_ended()
    assert not ended.finished
    assert sight.id == ended.id
    assert sight.rows_received <= ended.sent < ROWS
    assert not sight.done


def test_export_slow_reader(fake: Fake) -> None:
    for seed in itertools.count():
        traffic = traffic_for(fake.url, "export-slow-reader", seed=seed)
        rows = next(traffic.visits(0)).choices.randint(10, 100)
        if rows < ROWS:
            break
    (sight,) = visit_once(traffic)
    ended = fake.next_ended()
    assert sight == ExportVisit(ended.id, rows_received=rows, done=False)


# The whole.


def run(traffic: Traffic, seconds: float | None) -> float:
    """Run it; returns how long that took."""

    async def main() -> float:
        clock = asyncio.get_running_loop().time
        start = clock()
        await asyncio.wait_for(traffic.run(seconds), PATIENCE * 2)
        took = clock() - start
        assert len(asyncio.all_tasks()) == 1, "nothing of the traffic is left"
        return took

    return asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.01)


def assert_all_told(traffic: Traffic) -> None:
    numbers = traffic.numbers
    assert all(numbers.open(behaviour) == 0 for behaviour in BEHAVIOURS)
    assert numbers.started == numbers.ended + numbers.unstarted


def test_everybody_is_busy_until_the_time_is_over() -> None:
    with serving(ping=0.2) as fake:
        weights = dict.fromkeys(BEHAVIOURS, 1.0)
        traffic = traffic_for(
            fake.url, "", clients=20, seed=4, weights=weights, goodbye=PATIENCE, return_within=0.05
        )
        firsts = {next(traffic.visits(client)).behaviour for client in range(20)}
        assert firsts == set(BEHAVIOURS), "the seed lets nothing out"
        assert run(traffic, 1.0) >= 1.0
        # Somebody's second visit, however busy the machine is.
        assert traffic.numbers.started.total() > 20
        ended = fake.all_ended(len(traffic.sights))
        assert_all_told(traffic)
        assert not traffic.gone
        # One visit of a returning user is two connections; every other is one.
        returned = traffic.numbers.ended["room-reconnect"]
        assert len(traffic.sights) == traffic.numbers.ended.total() + returned
        assert set(traffic.numbers.ended) == set(BEHAVIOURS)
        assert {one.id for one in ended} == {identity(sight) for sight in traffic.sights}
        assert fake.ended.empty()


def identity(sight: RoomVisit | CompletionVisit | ExportVisit) -> str:
    return sight.session if isinstance(sight, RoomVisit) else sight.id


def test_who_does_not_come_to_an_end_is_cut_off_and_remembered(fake: Fake) -> None:
    traffic = traffic_for(fake.url, "room-half-open", clients=5, goodbye=0.2, half_open=PATIENCE * 10)
    took = run(traffic, 0.5)
    assert 0.5 <= took < PATIENCE
    assert_all_told(traffic)
    assert {one.id for one in fake.all_ended(5)} == {identity(sight) for sight in traffic.sights}
    assert {sight.ending for sight in traffic.sights} == {"aborted"}  # type: ignore[union-attr]


def test_the_rate_bounds_the_starts(fake: Fake) -> None:
    traffic = traffic_for(fake.url, "completion-full", clients=20, rate=10.0)
    took = run(traffic, 0.5)
    started = traffic.numbers.started.total()
    fake.all_ended(started)
    # The first at once, then one each tenth of a second.
    assert 1 <= started <= 1 + took * 10


def test_stop_ends_a_run_without_end(fake: Fake) -> None:
    traffic = traffic_for(fake.url, "completion-full", clients=3, remember=False)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.wait_for(traffic.run(), PATIENCE))
            await until(lambda: traffic.numbers.ended.total() >= 5)
            traffic.stop()

    asyncio.run(main())
    assert_all_told(traffic)
    fake.all_ended(traffic.numbers.started.total())
    assert traffic.sights == []


def test_cancelling_the_run_still_remembers(fake: Fake) -> None:
    traffic = traffic_for(fake.url, "room-half-open", clients=3)

    async def main() -> None:
        running = asyncio.create_task(traffic.run(PATIENCE))
        # Who has said something was told a session before.
        await until(lambda: len(fake.heard) == 3)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()

    asyncio.run(main())
    assert_all_told(traffic)
    assert {one.id for one in fake.all_ended(3)} == {identity(sight) for sight in traffic.sights}


@pytest.mark.parametrize("behaviour", ["room-polite", "completion-full", "export-full"])
def test_refused_visits_are_counted_and_no_reason_to_stop(behaviour: str) -> None:
    with serving(refuse=True) as fake:
        traffic = traffic_for(fake.url, behaviour, clients=3, gone_after=0.05)
        assert run(traffic, 0.5) >= 0.5
    assert traffic.numbers.unstarted[behaviour] > 3
    assert_all_told(traffic)
    assert not traffic.gone
    assert traffic.sights == []


def test_a_server_that_goes_away_ends_the_traffic() -> None:
    with serving() as fake:
        weights = dict.fromkeys(BEHAVIOURS, 1.0) | {"room-half-open": 0.0}
        # At this pace most people are in the middle of something.
        traffic = traffic_for(
            fake.url, "", clients=30, weights=weights, pace=0.3, gone_after=0.3, goodbye=PATIENCE
        )

        async def main() -> None:
            running = asyncio.create_task(traffic.run(PATIENCE * 10))
            await until(lambda: traffic.numbers.ended.total() >= 30)
            assert not traffic.gone
            fake.server.should_exit = True
            await asyncio.wait_for(running, PATIENCE * 2)

        asyncio.run(main())
    assert traffic.gone
    assert_all_told(traffic)
    endings = {sight.ending for sight in traffic.sights if isinstance(sight, RoomVisit)}
    assert endings == {"closed", "aborted", "server"}
    # Those that were refused, until it was clear that the server had gone for good.
    assert traffic.numbers.unstarted.total() > 0


def test_nobody_there_from_the_beginning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    traffic = traffic_for(f"http://127.0.0.1:{port}", "room-polite", clients=3, gone_after=0.1)
    assert run(traffic, PATIENCE * 10) < PATIENCE
    assert traffic.gone
    assert_all_told(traffic)
    assert traffic.sights == []


def test_a_server_that_breaks_the_wire_format_is_told() -> None:
    """An error of the service's is not one of the network's, and must not be counted away."""

    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await traffic_for(f"http://127.0.0.1:{port}", "export-full", clients=3).run(PATIENCE)

    with pytest.raises(ExceptionGroup, match="unhandled") as raised:
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert raised.group_contains(KeyError, match="X-Export-Id|x-export-id")


# The choices.


def plan(traffic: Traffic, client: int, count: int = 50) -> list[tuple[str, str, float]]:
    return [
        (visit.behaviour, visit.user, visit.choices.random())
        for visit in itertools.islice(traffic.visits(client), count)
    ]


def test_choices_are_the_same_for_the_same_seed() -> None:
    plans = [plan(Traffic("http://x", clients=3, seed=7), client) for client in range(3)]
    again = [plan(Traffic("http://x", clients=9, seed=7, pace=9.0), client) for client in range(3)]
    assert plans == again
    assert plans[0] != plans[1]
    assert plans[0] != plan(Traffic("http://x", seed=8), 0)


def test_a_visit_that_is_cut_short_changes_no_later_one() -> None:
    def choices(drawn: int) -> list[float]:
        visits = Traffic("http://x", seed=7).visits(0)
        cut_short = next(visits)
        for _ in range(drawn):
            cut_short.choices.random()
        return [visit.choices.random() for visit in itertools.islice(visits, 5)]

    assert choices(0) == choices(9)


def test_a_drawn_seed_can_be_repeated() -> None:
    first = Traffic("http://x")
    assert plan(first, 0) == plan(Traffic("http://x", seed=first.seed), 0)
    assert first.seed != Traffic("http://x").seed


def test_what_the_server_sees_is_repeatable(fake: Fake) -> None:
    def conversations() -> dict[str, list[tuple[str, list[str]]]]:
        traffic = traffic_for(fake.url, "room-polite", clients=4, seed=5, goodbye=PATIENCE)
        run(traffic, 0.3)
        seen: dict[str, list[tuple[str, list[str]]]] = {}
        for ended in fake.all_ended(len(traffic.sights)):
            seen.setdefault(ended.user, []).append((ended.what, ended.lines))
        return seen

    first, second = conversations(), conversations()
    assert first.keys() == second.keys() == {f"client-{n}" for n in range(4)}
    for user in first:
        both = list(zip(first[user], second[user], strict=False))
        assert len(both) > 1
        assert all(one == other for one, other in both)


def test_weights_are_kept_in_proportion() -> None:
    traffic = Traffic("http://x", seed=1, weights=only("room-abort", 3) | {"export-full": 1})
    chosen: Sequence[Visit] = list(itertools.islice(traffic.visits(0), 2_000))
    names = [visit.behaviour for visit in chosen]
    assert set(names) == {"room-abort", "export-full"}
    assert names.count("room-abort") / names.count("export-full") == pytest.approx(3, rel=0.25)


def test_every_behaviour_has_a_weight() -> None:
    assert WEIGHTS.keys() == BEHAVIOURS.keys()
    assert min(WEIGHTS.values()) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"room-rude": 1}}, "no such behaviour: room-rude; there are room-polite, "),
        ({"weights": {"room-polite": -1}}, "weights must not be negative"),
        ({"weights": dict.fromkeys(BEHAVIOURS, 0)}, "one must be above zero"),
        ({"clients": 0}, "at least one client"),
        ({"rate": 0}, "a rate above zero"),
        ({"url": "ftp://x"}, "not an http or https address: ftp://x"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Traffic(**{"url": "http://x"} | settings)
