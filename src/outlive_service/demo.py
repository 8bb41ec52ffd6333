"""The demo: the service, its partner and traffic, and an honest account at the end."""

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from outlive_service.account import (
    Account,
    AnswerRow,
    Counters,
    Database,
    ExportRow,
    SessionRow,
    balance,
    read_counters,
)
from outlive_service.records import Bill, Transcript
from outlive_service.store import Store
from outlive_service.traffic import Traffic

SERVICE_COMMAND = ("-m", "outlive", "serve")
PARTNER_COMMAND = ("-m", "outlive", "partner")
SERVICE_PORT = 8000
PARTNER_PORT = 8001
START_TIMEOUT = 30.0
"""Seconds for a process to answer."""
STOP_TIMEOUT = 40.0
"""Seconds for a process to stop: its whole drain, and then some."""
LINES_BEFORE = 300
"""Lines that each client has said before the demo begins, so that a report has something to tell."""

# A partner with bad days, so that there is something to see: answers that come late, not at all, or as errors.
PARTNER = {
    "PARTNER_NOTICES_LATENCY": "0.05",
    "PARTNER_NOTICES_ERROR_RATE": "0.08",
    "PARTNER_NOTICES_HANG_RATE": "0.05",
    "PARTNER_CHARGES_LATENCY": "0.02",
    "PARTNER_CHARGES_ERROR_RATE": "0.05",
    "PARTNER_TOKEN_INTERVAL": "0.03",
}
# Everything a little shorter than in production, so that it happens while one looks.
SERVICE = {
    "NOTIFY_TIMEOUT": "1.5",
    "DEPARTURE_GRACE": "1.5",
    "WS_PING_INTERVAL": "1",
    "WS_PING_TIMEOUT": "1",
    "EXPORT_PAGE": "20",
    "EXPORT_PAGE_INTERVAL": "0.05",
    "LIVE": "true",
    "LIVE_PATH": "/outlive/",
    "FLOWS_KEPT": "500",
    "PAGES_PORT": "",
    "PAGES_TOKEN": "",
    "LOG_FORMAT": "json",
}


class DemoError(Exception):
    """The demo cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where things are."""

    service: str
    partner: str
    service_pid: int

    @property
    def live(self) -> str:
        """The live page."""
        return f"{self.service}/outlive/"


class Process:
    """A process of the demo, its output in a file."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, url: str) -> None:
        self.pid = process.pid
        self.log = log
        self.url = url
        self._process = process

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        port_variable: str,
        wanted_port: int,
        environment: Mapping[str, str],
        log: Path,
    ) -> "Process":
        """Start `python COMMAND` on the wanted port, or on any other if that one is taken.

        Raises:
            DemoError: it ended, or didn't listen in time.
        """
        ports = [wanted_port, 0] if is_free(wanted_port) else [0]
        for port in ports:
            with log.open("wb") as output:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *command,
                    env={**os.environ, **environment, port_variable: str(port)},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    # A Ctrl-C at the terminal is for the demo, which then stops its processes in order.
                    start_new_session=True,
                )
            # Its own words, not an answer at the port: that could be another process's.
            deadline = time.monotonic() + START_TIMEOUT
            while process.returncode is None and time.monotonic() < deadline:
                if listening := last_event(log, "listening"):
                    return cls(process, log, f"http://{listening['host']}:{listening['port']}")
                await asyncio.sleep(0.05)
            if process.returncode is None:
                process.kill()
                await process.wait()
        raise DemoError(f"`python {' '.join(command)}` didn't start; its last words:\n{last_words(log)}")

    @property
    def running(self) -> bool:
        """Whether it hasn't ended."""
        return self._process.returncode is None

    async def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        with suppress(ProcessLookupError):
            if self.running:
                self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            raise DemoError(f"a process of the demo didn't stop within {STOP_TIMEOUT:g} s") from None


class Demo:
    """The processes and the traffic of one demo.

    Parameters:
        clients: simulated people.
        seed: makes their choices repeatable.
        weights: how often a behaviour is chosen, for those named.
        service, partner: further settings of the two, by environment variable.
        pace: scales the pauses that people make.
        command: what Python is to run as the service.
        folder: where the logs and the database are to be, and stay; by default they go with the demo.
    """

    def __init__(
        self,
        clients: int,
        seed: int | None,
        weights: Mapping[str, float],
        *,
        service: Mapping[str, str] | None = None,
        partner: Mapping[str, str] | None = None,
        pace: float = 1.0,
        command: Sequence[str] = SERVICE_COMMAND,
        folder: Path | None = None,
    ) -> None:
        self._clients = clients
        self._command = command
        self._folder = folder
        self._seed = seed
        self._weights = weights
        self._settings = service or {}
        self._partner_settings = partner or {}
        self._pace = pace
        self.account: Account | None = None
        self.traffic: Traffic
        self.addresses: Addresses
        self.service: Process
        self.partner: Process
        self.database_url: str
        self.stopped: dict[str, Any] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start everything; at the end stop the traffic's service, draw up the account, stop the rest.

        Raises:
            DemoError: something could not be started or stopped.
        """
        async with AsyncExitStack() as stack:
            folder = self._folder or Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="outlive-demo-"))
            )
            seed = {} if self._seed is None else {"PARTNER_SEED": str(self._seed)}
            partner_environment = {**PARTNER, **seed, **self._partner_settings}
            self.partner = partner = await Process.start(
                PARTNER_COMMAND, "PARTNER_PORT", PARTNER_PORT, partner_environment, folder / "partner.log"
            )
            stack.push_async_callback(partner.stop)
            environment = {
                "DATABASE_URL": os.environ.get("DATABASE_URL", f"sqlite:///{folder / 'demo.db'}"),
                **SERVICE,
                "PARTNER_URL": partner.url,
                "UPSTREAM_URL": partner.url,
                "FINAL_METRICS_FILE": str(folder / "final.prom"),
                **self._settings,
            }
            self.database_url = environment["DATABASE_URL"]
            await self._fill()
            self.service = await Process.start(
                self._command, "PORT", SERVICE_PORT, environment, folder / "service.log"
            )
            stack.push_async_callback(self.service.stop)
            self.addresses = Addresses(self.service.url, partner.url, self.service.pid)
            self.traffic = Traffic(
                self.service.url, self._clients, self._seed, weights=self._weights, pace=self._pace
            )
            yield
            await self.service.stop()
            self.account = await self._draw_up(partner.url, folder)

    async def _fill(self) -> None:
        store = await Store(self.database_url).create()
        try:
            for client in range(self._clients):
                name = f"client-{client}"
                lines = [f"what {name} said before, line {n}" for n in range(LINES_BEFORE)]
                await store.save_session(Transcript(os.urandom(16).hex(), "before", name, lines))
        finally:
            await store.close()

    async def _draw_up(self, partner_url: str, folder: Path) -> Account:
        final = folder / "final.prom"
        closed = last_event(self.service.log, "closed")
        if closed is None or not final.exists():
            raise DemoError(
                f"the service ended without an account; its last words:\n{last_words(self.service.log)}"
            )
        self.stopped = last_event(self.service.log, "stopped") or {}
        counters = read_counters(final.read_text())
        async with httpx.AsyncClient() as client:
            records = (await client.get(f"{partner_url}/records", timeout=30.0)).json()
        account = balance(self.traffic.sights, await read_database(self.database_url), records, counters)
        return with_submissions(account, closed)


def with_submissions(account: Account, closed: Mapping[str, Any]) -> Account:
    """Check the service's own count of submissions, which its metrics don't have, against the outcomes."""
    submitted = closed["submitted"]
    wrong = []
    if submitted != sum(account.outcomes.values()):
        wrong.append(f"{submitted} runs submitted, but {sum(account.outcomes.values())} outcomes")
    if closed["outcomes"] != dict(account.outcomes):
        wrong.append(f"the runner counted {closed['outcomes']}, its metrics {dict(account.outcomes)}")
    return replace(account, submitted=submitted, errors=(*account.errors, *wrong))


async def read_database(url: str) -> Database:
    """Read all rows that the account is about."""
    store = await Store(url).create()
    try:
        return Database(
            sessions=[SessionRow(row.id, row.room, row.user, row.lines) for row in await store.sessions()],
            answers=[
                AnswerRow(row.id, row.tokens, row.finished, "charged" if row.bill is Bill.CHARGED else "due")
                for row in await store.answers()
            ],
            exports=[ExportRow(row.id, row.released_at is not None) for row in await store.exports()],
        )
    finally:
        await store.close()


def last_event(log: Path, event: str) -> dict[str, Any] | None:
    """The last line of a log of JSON lines that tells of an event."""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and found.get("event") == event:
                return found
    return None


def last_words(log: Path) -> str:
    """The end of a process's output."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def is_free(port: int) -> bool:
    """Whether nobody listens on a TCP port of this machine."""
    with socket.socket() as probe:
        # As uvicorn does: a port whose last connections are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Look:
    """What the service tells of itself at one moment."""

    state: str
    counters: Counters
    gauges: Mapping[str, float]
    flows: list[dict[str, Any]]


class Observatory:
    """Looks at a service from outside, as Prometheus and a browser would."""

    def __init__(self, service_url: str) -> None:
        self._url = service_url
        self._last: Look | None = None

    async def look(self, client: httpx.AsyncClient) -> Look | None:
        """The present state; the last known one while the service doesn't answer."""
        try:
            metrics = (await client.get(f"{self._url}/metrics", timeout=5.0)).text
            state = (await client.get(f"{self._url}/readyz", timeout=5.0)).json()["state"]
            flows = (await client.get(f"{self._url}/outlive/flows?most=50", timeout=5.0)).json()["flows"]
        except (httpx.HTTPError, ValueError, KeyError):
            return None if self._last is None else replace(self._last, state="closed")
        self._last = Look(state, read_counters(metrics), read_gauges(metrics), flows)
        return self._last


def read_gauges(text: str) -> dict[str, float]:
    """Sums of the service's gauges by name, and of its connections by transport."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith(
            ("outlive_connections{", "outlive_runs_running", "outlive_runs_pending", "outlive_runs_stuck")
        ):
            continue
        series, _, value = line.rpartition(" ")
        name = series.partition("{")[0]
        if name == "outlive_connections":
            name = series.partition('transport="')[2].partition('"')[0]
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums
