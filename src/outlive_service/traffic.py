"""Many clients at once, each of which makes one visit after another."""

import asyncio
import contextlib
import random
import ssl
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import httpx
from websockets.exceptions import InvalidStatus, WebSocketException

from outlive_service.behaviours import BEHAVIOURS, WEIGHTS
from outlive_service.sights import Sight
from outlive_service.visits import Visit


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
