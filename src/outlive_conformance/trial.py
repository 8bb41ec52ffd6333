"""One group of cells played on a real server, and what the database, the partner and the process tell of it."""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import httpx

from outlive_conformance.clients import Client, client
from outlive_conformance.matrix import End, Group
from outlive_conformance.process import PATIENCE, WATCHED_FILE, ServerProcess, leave_test_client, serving
from outlive_conformance.servers import TEST_CLIENT
from outlive_conformance.state import STATE_PATH
from outlive_conformance.surroundings import Surroundings
from outlive_service.store import Store

SHORT_WORK = 0.3
LONG_WORK = 1.6
"""Seconds that the work takes; the long one is longer than the graceful timeout."""
PATIENCE_FOR_THE_LOST = 3.0
"""Seconds more than the work takes, after which work that nothing has to wait for is given up here too."""
BEGINNING = 1.5
"""Seconds in which handlers that are told of a disconnect begin the work."""
LOOK_INTERVAL = 0.1

State = dict[str, Any]


@dataclass(slots=True)
class Evidence:
    """What is known at the end of a trial.

    Parameters:
        clients: who was there, with the keys of their work.
        saved, noticed: how often each key is in the database and in the partner's records.
        begun: the keys of the work that got to its first line.
        before: the state of the process before the clients came.
        at_rest: its state when all their work was done, where the server stayed for that.
        after: the last states of the process, or of each worker.
        stopped: whether the server ended when it was asked to.
    """

    clients: list[Client]
    saved: Counter[str] = field(default_factory=Counter)
    noticed: Counter[str] = field(default_factory=Counter)
    begun: set[str] = field(default_factory=set)
    before: State | None = None
    at_rest: State | None = None
    after: list[State] = field(default_factory=list)
    stopped: bool = True


class Trial:
    """Plays one group.

    Parameters:
        group: what to play.
        partner_url: a partner without faults.
    """

    def __init__(self, group: Group, partner_url: str) -> None:
        self._group = group
        self._partner_url = partner_url
        self._work_seconds = LONG_WORK if any(end.is_stop for end in group.ends) else SHORT_WORK
        self._leave = asyncio.Event()
        self._folder: Path
        self._store: Store
        self._process: ServerProcess
        self._http: httpx.AsyncClient

    async def play(self) -> Evidence:
        """Play it, and gather what there is to know.

        Raises:
            ProcessError: the server didn't start.
            OSError, TimeoutError: it let a client not in.
        """
        with TemporaryDirectory(prefix="outlive-conformance-", ignore_cleanup_errors=True) as folder:
            self._folder = Path(folder)
            database = f"sqlite:///{self._folder / 'saved.db'}"
            surroundings = Surroundings(
                database,
                self._partner_url,
                folder,
                self._work_seconds,
                [end.name for end in self._group.ends],
                self._group.is_outlives,
            )
            self._store = await Store(database).create()
            try:
                async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as self._http:
                    if self._group.server is TEST_CLIENT:
                        evidence = Evidence(self._clients(0))
                        await leave_test_client(surroundings, [one.path for one in evidence.clients])
                    else:
                        async with serving(self._group, surroundings) as self._process:
                            evidence = await self._perform()
                    await self._gather(evidence)
                    return evidence
            finally:
                await self._store.close()

    async def _perform(self) -> Evidence:
        evidence = Evidence(self._clients(self._process.port))
        if self._group.is_outlives:
            evidence.before = await self._state()
        async with asyncio.TaskGroup() as visits:
            visiting = [visits.create_task(one.visit(self._leave)) for one in evidence.clients]
            for one in evidence.clients:
                await one.there.wait()
            if not any(end.is_stop for end in self._group.ends):
                self._leave.set()
                await self._come_to_rest(evidence)
                self._process.signal(signal.SIGTERM)
            else:
                await self._stop(evidence)
            restarted = any(end.is_restart for end in self._group.ends)
            # What was to be shown of a restart is over, and a server that is still at it may not heed the signal.
            evidence.stopped = await self._process.ended(1.0 if restarted else PATIENCE) or restarted
            for visit in visiting:
                visit.cancel()
        return evidence

    def _clients(self, port: int) -> list[Client]:
        return [client(cell, uuid4().hex, port, self._folder) for cell in self._group.cells]

    async def _stop(self, evidence: Evidence) -> None:
        (end,) = self._group.ends
        process = self._process
        match end:
            case End.STOP_BEFORE | End.STOP_BEFORE_GRACE:
                process.signal(signal.SIGTERM)
                await asyncio.sleep(0.5)
                self._leave.set()
            case End.STOP_AT | End.STOP_AT_GRACE:
                self._leave.set()
                await asyncio.sleep(0.01)
                process.signal(signal.SIGTERM)
            case _:
                self._leave.set()
                await self._begins(evidence)
                match end:
                    case End.WORKERS:
                        assert self._group.server.workers is not None
                        process.signal(self._group.server.workers[1])
                        await self._restarts(evidence, workers=2)
                    case End.RELOAD:
                        (self._folder / WATCHED_FILE).write_text("# changed\n")
                        await self._restarts(evidence, workers=1)
                # What reloads runs at somebody's terminal, and one of them heeds nothing but Ctrl-C.
                process.signal(signal.SIGINT if end is End.RELOAD else signal.SIGTERM)
                if end is End.SECOND_SIGNAL:
                    await asyncio.sleep(0.3)
                    process.signal(signal.SIGTERM)

    async def _begins(self, evidence: Evidence) -> None:
        deadline = time.monotonic() + BEGINNING
        keys = {one.key for one in evidence.clients}
        while time.monotonic() < deadline and not self._begun() >= keys:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(LOOK_INTERVAL)

    async def _restarts(self, evidence: Evidence, workers: int) -> None:
        """Wait until the old workers have gone, or until what is still undone is lost."""
        deadline = time.monotonic() + (
            PATIENCE if self._group.is_outlives else self._work_seconds + PATIENCE_FOR_THE_LOST
        )
        while time.monotonic() < deadline:
            if self._group.is_outlives and len(self._closed()) >= workers:
                return
            if not self._group.is_outlives and await self._all_saved(evidence):
                return
            await asyncio.sleep(LOOK_INTERVAL)

    async def _come_to_rest(self, evidence: Evidence) -> None:
        deadline = time.monotonic() + PATIENCE
        if self._group.is_outlives:
            while time.monotonic() < deadline:
                evidence.at_rest = state = await self._state()
                evidence.after = [state]  # all that is told by a server without lifespan
                if is_at_rest(state, evidence):
                    return
                await asyncio.sleep(LOOK_INTERVAL)
        else:
            last = time.monotonic() + PATIENCE_FOR_THE_LOST + self._work_seconds
            saved = 0
            while time.monotonic() < min(last, deadline):
                found = len(await self._store.sessions())
                if found == len(evidence.clients):
                    return
                if found > saved:
                    saved, last = found, time.monotonic() + PATIENCE_FOR_THE_LOST + self._work_seconds
                await asyncio.sleep(LOOK_INTERVAL)

    async def _all_saved(self, evidence: Evidence) -> bool:
        return len(await self._store.sessions()) == len(evidence.clients)

    async def _state(self) -> State:
        response = await self._http.get(f"http://127.0.0.1:{self._process.port}{STATE_PATH}")
        state: State = response.json()
        return state

    def _begun(self) -> set[str]:
        notes = self._folder / "begun"
        return set(notes.read_text().split()) if notes.exists() else set()

    def _closed(self) -> list[State]:
        return [json.loads(file.read_text()) for file in self._folder.glob("closed-*.json")]

    async def _gather(self, evidence: Evidence) -> None:
        keys = {one.key for one in evidence.clients}
        records = (await self._http.get(f"{self._partner_url}/records")).json()
        evidence.noticed = Counter(notice["key"] for notice in records["notices"] if notice["key"] in keys)
        evidence.saved = Counter(session.id for session in await self._store.sessions())
        evidence.begun = self._begun()
        if closed := self._closed():
            evidence.after = closed


def is_at_rest(state: State, evidence: Evidence) -> bool:
    """Whether every client's run has its outcome, and nothing of it is left."""
    return (
        state["outcomes"] == state["submitted"] == len(evidence.clients)
        and not state["connections"]
        and not state["spans"]["open"]
        and not left_tasks(state, evidence)
    )


def left_tasks(state: State, evidence: Evidence) -> Sequence[str]:
    """The asyncio tasks that weren't there before the clients came."""
    before = evidence.before or {"tasks": []}
    return sorted((Counter(state["tasks"]) - Counter(before["tasks"])).elements())
