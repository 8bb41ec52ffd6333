"""Clients that come, talk and vanish in every way, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, urlencode

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.protocol import State

__all__ = [
    "BEHAVIOURS",
    "WEIGHTS",
    "CompletionVisit",
    "ExportVisit",
    "Numbers",
    "RoomVisit",
    "Sight",
    "Traffic",
]

Ending = Literal["closed", "aborted", "given_up", "server"]
"""Who ended a connection to a room, and how: the client by a close frame, the client by dropping the
transport, the server because the client had fallen silent, or the server for a reason of its own."""


@dataclass(frozen=True, slots=True)
class RoomVisit:
    """What a client saw of one connection to a room; a line is acknowledged when its own echo came back."""

    session: str
    room: str
    user: str
    sent: int
    acknowledged: int
    ending: Ending


@dataclass(frozen=True, slots=True)
class CompletionVisit:
    """What a client saw of one answer; `done` if its last event came."""

    id: str
    tokens_received: int
    done: bool


@dataclass(frozen=True, slots=True)
class ExportVisit:
    """What a client saw of one report: lines after the heading; `done` if its end came."""

    id: str
    rows_received: int
    done: bool


Sight = RoomVisit | CompletionVisit | ExportVisit


@dataclass(slots=True)
class Numbers:
    """Live numbers by behaviour, each visit in `started` and at its end in one of the others.

    `unstarted` are the visits that the server refused, or that ended before it told an id.
    """

    started: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    unstarted: Counter[str] = field(default_factory=Counter)

    def open(self, behaviour: str) -> int:
        """Visits of this behaviour that are going on."""
        return self.started[behaviour] - self.ended[behaviour] - self.unstarted[behaviour]


_WORDS = ("well", "then", "the", "ship", "sails", "at", "noon", "and", "we", "wait", "for", "rain", "again")
_LONGEST_LINE = 2_000
_SMALL_BUFFER = 4_096
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class _Silence(asyncio.Protocol):
    """Takes the place of a WebSocket's protocol: what arrives is dropped, so no ping is answered.

    Reading on, instead of pausing the transport, is what lets the client notice that the server gave up.
    """

    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket

    def connection_lost(self, exc: Exception | None) -> None:
        self._websocket.connection_lost(exc)

    def pause_writing(self) -> None:
        self._websocket.pause_writing()

    def resume_writing(self) -> None:
        self._websocket.resume_writing()


class Seat:
    """One connection to a room, and what its client knows about it."""

    def __init__(self, visit: Visit, websocket: ClientConnection, session: str) -> None:
        self.session = session
        self.sent = 0
        self.acknowledged = 0
        self.ending: Ending = "aborted"
        self._visit = visit
        self._websocket = websocket

    async def say(self, text: str) -> None:
        # Counted first: a line whose sending failed may have arrived all the same.
        self.sent += 1
        await self._websocket.send(text)

    async def hear_one(self) -> None:
        """Read one frame."""
        frame = json.loads(await self._websocket.recv())
        if frame["type"] == "line" and frame["session"] == self.session:
            self.acknowledged += 1

    async def hear(self, seconds: float, *, until_acknowledged: bool = False) -> None:
        """Read for so many seconds, or until every own line has come back."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (until_acknowledged and self.acknowledged >= self.sent):
                    await self.hear_one()

    async def talk(self) -> None:
        """Say a few lines with pauses in between, and read what the room says meanwhile."""
        choices = self._visit.choices
        for _ in range(choices.randint(1, 6)):
            await self.say(self._visit.line(choices.randint(3, 12)))
            await self.hear(self._visit.pause(0.05, 0.6))

    async def close(self) -> None:
        """Leave with a close frame."""
        # Told before the closing handshake: who sent the first close frame is who ended the connection.
        self.ending = "closed" if self._websocket.state is State.OPEN else "server"
        async with asyncio.TaskGroup() as group:
            group.create_task(self._websocket.close())
            # Somebody has to read on: with a full queue the server's close frame would never be seen.
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self.hear_one()

    def abort(self) -> None:
        """Drop the transport, with no close frame."""
        self.ending = "aborted" if self._websocket.state is State.OPEN else "server"
        self._websocket.transport.abort()

    async def fall_silent(self, seconds: float) -> None:
        """Neither read, answer nor close, until the server gives up or so many seconds have passed."""
        self._websocket.transport.set_protocol(_Silence(self._websocket))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._websocket.wait_closed()
                self.ending = "given_up"


async def _events(response: httpx.Response) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    """Yield the server-sent events of a response; one without its blank line is dropped, by the standard."""
    event, data = "message", ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(":")
        if name == "event":
            event = value.strip()
        elif name == "data":
            data += value
        elif not line:
            if data:
                yield event, json.loads(data)
            event, data = "message", ""


async def _tokens(response: httpx.Response, visit: Visit) -> AsyncGenerator[int]:
    """Yield the number of tokens so far at each token, and have what was seen remembered at the end."""
    answer_id, count, done = "", 0, False
    try:
        async with contextlib.aclosing(_events(response)) as events:
            async for event, data in events:
                match event:
                    case "start":
                        answer_id = data["id"]
                    case "message":
                        count += 1
                        yield count
                    case "done":
                        done = True
    finally:
        if answer_id:
            visit.remember(CompletionVisit(answer_id, count, done))


class Visit:
    """One person's one visit: who they are, the choices they make, and where to go."""

    def __init__(self, traffic: Traffic, behaviour: str, user: str, choices: random.Random) -> None:
        self.behaviour = behaviour
        self.user = user
        self.choices = choices
        self.traffic = traffic
        self.remembered = False
        self.reached = False

    def reach(self) -> None:
        """Note that the server answered."""
        self.reached = True
        self.traffic.unreached_since = None

    def remember(self, sight: Sight) -> None:
        self.remembered = True
        self.traffic.remember(sight)

    def pause(self, shortest: float, longest: float) -> float:
        return self.choices.uniform(shortest, longest) * self.traffic.pace

    def line(self, words: int) -> str:
        return " ".join(self.choices.choices(_WORDS, k=words))[:_LONGEST_LINE]

    def room(self) -> str:
        return f"room-{self.choices.randrange(self.traffic.rooms)}"

    @contextlib.asynccontextmanager
    async def sit_down(self, room: str, *, max_queue: int = 16) -> AsyncIterator[Seat]:
        """Connect to a room; at the end of the block the connection is over and what was seen remembered."""
        websocket = await connect(
            f"{self.traffic.websocket_url}/rooms/{quote(room, safe='')}?{urlencode({'user': self.user})}",
            # The server's pings decide who is alive; and 10,000 compressors would need gigabytes.
            ping_interval=None,
            compression=None,
            proxy=None,
            ssl=self.traffic.tls if self.traffic.websocket_url.startswith("wss") else None,
            open_timeout=self.traffic.patience,
            close_timeout=self.traffic.patience,
            max_queue=max_queue,
        )
        self.reach()
        seat = None
        try:
            async with asyncio.timeout(self.traffic.patience):
                welcome = json.loads(await websocket.recv())
            seat = Seat(self, websocket, welcome["session"])
            try:
                yield seat
            except ConnectionClosed:
                seat.ending = "server"
                raise
        finally:
            # Not `close()`: this may be a client that is told to stop at once. A no-op after a close.
            websocket.transport.abort()
            if seat is not None:
                self.remember(
                    RoomVisit(seat.session, room, self.user, seat.sent, seat.acknowledged, seat.ending)
                )

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, *, body: Any = None, small_buffer: bool = False
    ) -> AsyncIterator[httpx.Response]:
        """Ask over a connection of one's own, and hand out the response as soon as its headers are there."""
        # A client for each visit: httpx's pool looks through all its connections at each request, so that one
        # pool for everybody would be quadratic.
        options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)] if small_buffer else None
        transport = httpx.AsyncHTTPTransport(verify=self.traffic.tls, trust_env=False, socket_options=options)
        async with (
            httpx.AsyncClient(transport=transport, timeout=self.traffic.patience, trust_env=False) as client,
            client.stream(method, self.traffic.url + path, json=body) as response,
        ):
            self.reach()
            response.raise_for_status()
            yield response

    @contextlib.asynccontextmanager
    async def ask(self, max_tokens: int) -> AsyncIterator[tuple[httpx.Response, AsyncGenerator[int]]]:
        """Ask for a completion."""
        prompt = {"user": self.user, "prompt": self.line(8), "max_tokens": max_tokens}
        async with (
            self.request("POST", "/completions", body=prompt) as response,
            contextlib.aclosing(_tokens(response, self)) as tokens,
        ):
            yield response, tokens

    async def export(
        self, *, leave_after: int | None = None, small_buffer: bool = False, rest: float = 0.0
    ) -> None:
        """Read a report to its end or to a line, with a rest in seconds after each line."""
        path = f"/exports/usage.csv?{urlencode({'user': self.user})}"
        lines, done = 0, False
        async with self.request("GET", path, small_buffer=small_buffer) as response:
            export_id = response.headers["X-Export-Id"]
            try:
                async for _ in response.aiter_lines():
                    lines += 1
                    if leave_after is not None and lines > leave_after:
                        break
                    if rest:
                        await asyncio.sleep(rest)
                else:
                    done = True
            finally:
                self.remember(ExportVisit(export_id, max(0, lines - 1), done))


async def _room_polite(visit: Visit) -> None:
    async with visit.sit_down(visit.room()) as seat:
        await seat.talk()
        await seat.hear(2.0, until_acknowledged=True)
        await seat.close()


async def _room_abort(visit: Visit) -> None:
    async with visit.sit_down(visit.room()) as seat:
        await seat.talk()
        # The last word and the end of the transport reach the server together.
        await seat.say(visit.line(5))
        seat.abort()


async def _room_half_open(visit: Visit) -> None:
    async with visit.sit_down(visit.room()) as seat:
        await seat.talk()
        await seat.fall_silent(visit.traffic.half_open)


async def _room_reconnect(visit: Visit) -> None:
    room, polite = visit.room(), visit.choices.random() < 0.5
    async with visit.sit_down(room) as seat:
        await seat.talk()
        if polite:
            await seat.close()
    # Not scaled by the pace: what counts is the server's grace.
    await asyncio.sleep(visit.choices.uniform(0.2, 0.8) * visit.traffic.return_within)
    async with visit.sit_down(room) as seat:
        await seat.talk()
        await seat.close()


async def _room_slow_reader(visit: Visit) -> None:
    async with visit.sit_down(visit.room(), max_queue=1) as seat:
        lines = visit.choices.randint(3, 10)
        for _ in range(lines):
            await seat.say(visit.line(500))
        for _ in range(lines):
            await asyncio.sleep(visit.pause(0.05, 0.5))
            await seat.hear_one()
        await seat.close()


async def _completion_full(visit: Visit) -> None:
    async with visit.ask(visit.choices.randint(8, 48)) as (_, tokens):
        async for _ in tokens:
            pass


async def _completion_leave(visit: Visit) -> None:
    max_tokens = visit.choices.randint(16, 64)
    leave_after = visit.choices.randint(1, max_tokens // 2)
    reset = visit.choices.random() < 0.5
    async with visit.ask(max_tokens) as (response, tokens):
        async for count in tokens:
            if count == leave_after:
                break
        if reset:
            sock = response.extensions["network_stream"].get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


async def _export_full(visit: Visit) -> None:
    await visit.export()


async def _export_leave(visit: Visit) -> None:
    # Early: a short report would be over before its reader left.
    await visit.export(leave_after=visit.choices.randint(0, 3))


async def _export_slow_reader(visit: Visit) -> None:
    # It leaves at some line, since a long report at this speed would have no end.
    await visit.export(
        leave_after=visit.choices.randint(10, 100), small_buffer=True, rest=visit.pause(0.005, 0.05)
    )


BEHAVIOURS: Mapping[str, Callable[[Visit], Awaitable[None]]] = {
    "room-polite": _room_polite,
    "room-abort": _room_abort,
    "room-half-open": _room_half_open,
    "room-reconnect": _room_reconnect,
    "room-slow-reader": _room_slow_reader,
    "completion-full": _completion_full,
    "completion-leave": _completion_leave,
    "export-full": _export_full,
    "export-leave": _export_leave,
    "export-slow-reader": _export_slow_reader,
}
"""What a visit can be, by name."""

WEIGHTS: Mapping[str, float] = {
    "room-polite": 4,
    "room-abort": 4,
    "room-half-open": 1,
    "room-reconnect": 3,
    "room-slow-reader": 1,
    "completion-full": 3,
    "completion-leave": 5,
    "export-full": 1,
    "export-leave": 2,
    "export-slow-reader": 1,
}
"""How often each behaviour is chosen, relative to the others, unless told otherwise."""


class Traffic:
    """Simulated people, each a client that makes one visit after another.

    Parameters:
        url: where the service is, for instance `http://127.0.0.1:8000`.
        clients: how many people there are; each has one visit, and at most one socket, at a time.
        seed: makes the choices repeatable, whatever the scheduling; drawn and kept in `seed` if None.
        weights: how often each behaviour is chosen; what isn't named keeps its weight in `WEIGHTS`.
        rate: at most so many visits start per second, of all people together.
        pace: scales the pauses that people make, for tests.
        rooms: how many rooms they share; one for each eight people if None.
        return_within: who comes back to a room does so within so many seconds; less than the departure grace.
        half_open: who falls silent waits at most so many seconds for the server to give up.
        patience: seconds to wait for a connection, the next byte of an answer or a closing handshake.
        longest: no visit takes longer than so many seconds.
        goodbye: seconds that visits get to come to their own end when the time is over.
        gone_after: when nobody has reached the server for so many seconds, it is gone for good.
        remember: keep what was seen in `sights`; without it a run of any length needs no more memory.

    Raises:
        ValueError: if a number makes no sense, or a weight names no behaviour.
    """

    def __init__(
        self,
        url: str,
        clients: int = 40,
        seed: int | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        rate: float = 200.0,
        pace: float = 1.0,
        rooms: int | None = None,
        return_within: float = 0.5,
        half_open: float = 60.0,
        patience: float = 10.0,
        longest: float = 120.0,
        goodbye: float = 5.0,
        gone_after: float = 3.0,
        remember: bool = True,
    ) -> None:
        self.weights = {**WEIGHTS, **(weights or {})}
        if unknown := self.weights.keys() - BEHAVIOURS.keys():
            raise ValueError(
                f"no such behaviour: {', '.join(sorted(unknown))}; there are {', '.join(BEHAVIOURS)}"
            )
        if min(self.weights.values()) < 0 or not sum(self.weights.values()) > 0:
            raise ValueError("weights must not be negative, and one must be above zero")
        if clients < 1 or not rate > 0:
            raise ValueError("there must be at least one client, and a rate above zero")
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"not an http or https address: {url}")
        self.url = url.rstrip("/")
        self.websocket_url = "ws" + self.url.removeprefix("http")
        self.clients = clients
        self.seed = random.SystemRandom().getrandbits(32) if seed is None else seed
        self.rate = rate
        self.pace = pace
        self.rooms = rooms or max(1, clients // 8)
        self.return_within = return_within
        self.half_open = half_open
        self.patience = patience
        self.longest = longest
        self.goodbye = goodbye
        self.gone_after = gone_after
        self.numbers = Numbers()
        self.sights: list[Sight] = []
        # Whether the traffic ended because the server could no longer be reached.
        self.gone = False
        # One for all visits, since reading the certificates takes longer than a visit.
        secure = url.startswith("https")
        self.tls = httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._remembers = remember
        self._over = asyncio.Event()
        self._idle: set[asyncio.Task[None]] = set()
        self._next_start = 0.0
        self.unreached_since: float | None = None

    async def run(self, seconds: float | None = None) -> None:
        """Keep everybody busy for so many seconds (None: until `stop`), then let the visits under way end.

        It takes at most `goodbye` seconds longer, and works once. A server that goes away ends it early and
        raises nothing.

        Raises:
            ExceptionGroup: the server broke a wire format.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._person(number), name=f"client-{number}")
                for number in range(self.clients)
            ]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._over.wait()
            self._over.set()
            for task in self._idle:
                task.cancel()
            await asyncio.wait(tasks, timeout=self.goodbye)
            for task in tasks:
                task.cancel()

    def stop(self) -> None:
        """Start no more visits, and let those under way come to their end."""
        self._over.set()

    def visits(self, client: int) -> Iterator[Visit]:
        """Yield one client's visits without end, the same for the same seed and weights."""
        choices = random.Random(f"{self.seed}/{client}")
        names, weights = list(self.weights), list(self.weights.values())
        while True:
            (behaviour,) = choices.choices(names, weights)
            # A generator for each visit: one that is cut short must not change the next.
            yield Visit(self, behaviour, f"client-{client}", random.Random(choices.getrandbits(64)))

    async def _person(self, number: int) -> None:
        for visit in self.visits(number):
            await self._turn(visit.pause(0.05, 0.5))
            if self._over.is_set():
                return
            numbers = self.numbers
            numbers.started[visit.behaviour] += 1
            try:
                async with asyncio.timeout(self.longest):
                    await BEHAVIOURS[visit.behaviour](visit)
            except (OSError, WebSocketException, httpx.HTTPError) as error:
                # A visit that the network or the server ended is no news; what it saw is remembered. A
                # refusal is an answer, and a server that takes its time is still there.
                answered = visit.reached or isinstance(error, InvalidStatus)
                if not answered and not isinstance(error, TimeoutError | httpx.TimeoutException):
                    self._unreached()
            finally:
                (numbers.ended if visit.remembered else numbers.unstarted)[visit.behaviour] += 1

    async def _turn(self, pause: float) -> None:
        """Pause, then wait for one's turn to start a visit."""
        task = asyncio.current_task()
        assert task is not None
        self._idle.add(task)
        try:
            await asyncio.sleep(pause)
            now = asyncio.get_running_loop().time()
            start = self._next_start = max(self._next_start + 1 / self.rate, now)
            await asyncio.sleep(start - now)
        finally:
            self._idle.discard(task)

    def remember(self, sight: Sight) -> None:
        if self._remembers:
            self.sights.append(sight)

    def _unreached(self) -> None:
        now = asyncio.get_running_loop().time()
        if self.unreached_since is None:
            self.unreached_since = now
        elif now - self.unreached_since >= self.gone_after:
            self.gone = True
            self._over.set()
