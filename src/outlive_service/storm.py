"""A storm: many WebSockets that go at the same moment, and what becomes of all that they leave behind."""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
from websockets.exceptions import WebSocketException

from outlive_service.account import OUTCOMES, Counters, read_counters
from outlive_service.descriptors import reserve
from outlive_service.sights import RoomVisit
from outlive_service.traffic import Traffic
from outlive_service.visits import Visit

OWED = ("save_transcript", "notify_partner")
"""The service's tasks of which each session that has ended is owed a run."""

ROOM = 8
"""So many sit in one room."""
OPENING = 50
"""So many connections are being opened at once: below any backlog of a listening socket."""
LOOK_INTERVAL = 0.25
"""Seconds from one look at the service's counters to the next."""
REST = 2.0
"""When nothing runs, waits or changes for so many seconds, the storm is over."""


@dataclass(slots=True)
class Aftermath:
    """What became of a storm. Times are in seconds."""

    wanted: int
    opened: int = 0
    dropped: int = 0
    by_close_frame: int = 0
    by_abort: int = 0
    disconnects: dict[str, int] = field(default_factory=dict)
    runs: dict[str, dict[str, int]] = field(default_factory=dict)
    to_last_outcome: float = 0.0
    readiness_asked: int = 0
    readiness_red: int = 0
    readiness_slowest: float = 0.0
    readiness_slowest_at: float = 0.0
    """When it was asked for, from the drop on; before it, negative."""
    errors: list[str] = field(default_factory=list)

    @property
    def outcomes(self) -> dict[str, int]:
        """Runs of all tasks by outcome."""
        total = Counter(dict.fromkeys(OUTCOMES, 0))
        for by_outcome in self.runs.values():
            total.update(by_outcome)
        return dict(total)

    @property
    def accounted(self) -> bool:
        """Whether everything that was dropped is told by an outcome."""
        return not self.errors

    def lines(self) -> Iterator[str]:
        """The same for a person."""
        yield f"{self.opened:,} of {self.wanted:,} opened"
        yield f"{self.dropped:,} dropped: {self.by_close_frame:,} by close frame, {self.by_abort:,} by abort"
        causes = ", ".join(f"{cause} {count:,}" for cause, count in self.disconnects.items() if count)
        yield f"disconnects that the service counted: {causes or 'none'}"
        for task, by_outcome in self.runs.items():
            if ended := {outcome: count for outcome, count in by_outcome.items() if count}:
                yield f"{task}: " + ", ".join(f"{outcome} {count:,}" for outcome, count in ended.items())
        yield f"from the drop to the last outcome: {self.to_last_outcome:.1f} s"
        yield (
            f"/readyz, asked {self.readiness_asked:,} times: slowest answer {self.readiness_slowest:.2f} s "
            f"({self.readiness_slowest_at:+.0f} s from the drop), {self.readiness_red:,} not ready"
        )

    def as_json(self) -> dict[str, Any]:
        """What `outlive traffic --storm N --json` prints."""
        return {**asdict(self), "outcomes": self.outcomes, "accounted": self.accounted}


class Storm:
    """So many clients that sit in the service's rooms, each having said something, and go all at once.

    Every other one goes by a close frame, the others drop the transport.

    Parameters:
        url: where the service is.
        size: how many there are.
        patience: seconds to wait for any answer.
        settle: seconds from the drop until nothing must be left to do.

    Raises:
        DescriptorsError: the system doesn't allow so many connections; the message says what to do.
        ValueError: a number or the address makes no sense.
    """

    def __init__(self, url: str, size: int, *, patience: float = 60.0, settle: float = 600.0) -> None:
        if size < 1:
            raise ValueError("a storm has at least one WebSocket")
        reserve(size, f"a storm of {size:,} WebSockets")
        self._traffic = Traffic(url, size, seed=0, patience=patience)
        self._size = size
        self._patience = patience
        self._settle = settle
        self._opening = asyncio.Semaphore(OPENING)
        self._seated = 0
        self._everybody_came = asyncio.Event()
        self._drop = asyncio.Event()
        self._refused: Counter[str] = Counter()

    @property
    def sights(self) -> list[RoomVisit]:
        """What the clients saw, for the account."""
        return [sight for sight in self._traffic.sights if isinstance(sight, RoomVisit)]

    async def run(self) -> Aftermath:
        """Open, drop, and wait until the service has come to rest.

        Raises:
            HTTPError: the service doesn't tell its counters.
        """
        after = Aftermath(self._size)
        # Nobody but this storm should be there; a look takes its time when there is much to render.
        async with httpx.AsyncClient(timeout=self._patience, trust_env=False) as client:
            before = await self._look(client)
            probe = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "outlive_service.probe", self._traffic.url, str(self._patience)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            try:
                dropped_at = await self._come_and_go(client, before, after)
            finally:
                told, _ = await probe.communicate(b"")  # its input ends
        readiness = json.loads(told)
        after.readiness_asked, after.readiness_red = readiness["asked"], readiness["red"]
        after.readiness_slowest = readiness["slowest"]
        after.readiness_slowest_at = readiness["slowest_at"] - dropped_at
        return after

    async def _come_and_go(self, client: httpx.AsyncClient, before: Counters, after: Aftermath) -> float:
        visits = [asyncio.create_task(self._visit(number)) for number in range(self._size)]
        try:
            await self._everybody_came.wait()
            after.opened = self._seated
            dropped_at = time.monotonic()
            self._drop.set()
            now = await self._rest(client, dropped_at, before, after)
            # The closing handshakes are long over, unless the service owes one.
            await asyncio.wait(visits, timeout=self._patience)
        finally:
            for visit in visits:
                visit.cancel()
            await asyncio.gather(*visits, return_exceptions=True)
        endings = Counter(sight.ending for sight in self.sights)
        after.by_close_frame, after.by_abort = endings["closed"], endings["aborted"]
        after.dropped = after.by_close_frame + after.by_abort
        after.disconnects = _more(now.disconnects, before.disconnects)
        after.runs = {
            task: _more(by_outcome, before.runs.get(task, {})) for task, by_outcome in now.runs.items()
        }
        after.errors = list(self._errors(now, after))
        return dropped_at

    async def _visit(self, number: int) -> None:
        visit = Visit(self._traffic, "storm", f"storm-{number}", random.Random(number))
        seated = False
        try:
            async with AsyncExitStack() as stack:
                async with self._opening:
                    room = f"storm-{number // ROOM}"
                    seat = await stack.enter_async_context(visit.sit_down(room, max_queue=8 * ROOM))
                    await seat.say(visit.line(8))
                    await seat.hear(self._patience, until_acknowledged=True)
                seated = True
                self._seated += 1
                self._look_around()
                await self._drop.wait()
                if number % 2:
                    seat.abort()
                else:
                    await seat.close()
        except (OSError, WebSocketException) as error:
            if not seated:
                self._refused[type(error).__name__] += 1
                self._look_around()

    def _look_around(self) -> None:
        if self._seated + self._refused.total() == self._size:
            self._everybody_came.set()

    async def _rest(
        self, client: httpx.AsyncClient, dropped_at: float, before: Counters, after: Aftermath
    ) -> Counters:
        now, changed_at = before, dropped_at
        while True:
            asked_at = time.monotonic()
            then, now = now, await self._look(client)
            if (now.runs, now.submitted, now.disconnects) != (then.runs, then.submitted, then.disconnects):
                changed_at = asked_at
            gone = sum(_more(now.disconnects, before.disconnects).values())
            at_rest = gone >= after.opened and now.open == 0 and asked_at - changed_at >= REST
            if at_rest or asked_at - dropped_at > self._settle:
                after.to_last_outcome = changed_at - dropped_at
                return now
            await asyncio.sleep(LOOK_INTERVAL)

    def _errors(self, now: Counters, after: Aftermath) -> Iterator[str]:
        if self._refused:
            kinds = ", ".join(f"{kind} ({times})" for kind, times in self._refused.most_common())
            yield f"{self._refused.total()} of {self._size} were not let in: {kinds}"
        if after.dropped != after.opened:
            yield f"{after.opened - after.dropped} of {after.opened} were closed by the service before the storm"
        if (counted := sum(after.disconnects.values())) != after.opened:
            yield f"{after.opened} have gone, but the service counts {counted} disconnects"
        if now.open:
            yield f"{now.open} runs have no outcome after {self._settle:g} s"
        for task in OWED:
            if (ended := sum(after.runs.get(task, {}).values())) != after.opened:
                yield f"{after.opened} have gone, but {ended} runs of {task} have an outcome"

    async def _look(self, client: httpx.AsyncClient) -> Counters:
        answer = await client.get(f"{self._traffic.url}/metrics")
        answer.raise_for_status()
        return read_counters(answer.text)


def _more(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in now.items()}
