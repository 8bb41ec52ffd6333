"""One client's visit to the service, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from outlive_service.sights import CompletionVisit, Ending, ExportVisit, RoomVisit, Sight

if TYPE_CHECKING:
    from outlive_service.traffic import Traffic

_WORDS = ("well", "then", "the", "ship", "sails", "at", "noon", "and", "we", "wait", "for", "rain", "again")
_LONGEST_LINE = 2_000
_SMALL_BUFFER = 4_096


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
