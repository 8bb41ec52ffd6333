"""Thousands of sockets dropped at once: from the drop to the last outcome, with Outlive and by hand."""

import asyncio
import json
import resource
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from fastapi import FastAPI, WebSocket
from prometheus_client import CollectorRegistry

from benchmarks.applications import serve, tracing
from benchmarks.contenders.contender import TIMEOUT
from benchmarks.contenders.floor import Told
from benchmarks.load import KINDS, Asking
from benchmarks.processes import answer, ask, loop_factory
from benchmarks.servers import server
from outlive import Outlive

HANDS = ("Outlive", "by hand")
AT_ONCE = 250
"""Handshakes at the same time."""
LONGEST = 60.0
"""Seconds until the last outcome must be there."""


@dataclass(frozen=True)
class Storm:
    """A storm of so many sockets; the medians of all storms."""

    hand: str
    sockets: int
    seconds: float
    """From the drop to the last outcome."""
    cpu_seconds: float
    """Of the server, meanwhile."""
    outlive: float
    """Outlive's time as a multiple of it."""
    outlive_cpu: float


class Room:
    """An app that saves something when a WebSocket has gone."""

    def __init__(self, hand: str) -> None:
        self.saved = 0
        self.last = 0.0
        self.app = FastAPI()
        self._tasks: set[asyncio.Task[None]] = set()
        self._told = Told(tracing())
        leave = self._with_outlive() if hand == "Outlive" else self._by_hand

        @self.app.websocket("/echo")
        async def echo(ws: WebSocket) -> None:
            await ws.accept()
            try:
                async for text in ws.iter_text():
                    await ws.send_text(text)
            finally:
                leave()

        @self.app.get("/saved")
        async def saved() -> tuple[int, float, float]:
            return self.saved, self.last, time.process_time()

    async def _save(self) -> None:
        await asyncio.sleep(0.01)
        self.saved += 1
        self.last = time.monotonic()

    def _with_outlive(self) -> Callable[[], object]:
        outlive = Outlive(max_running=20_000, registry=CollectorRegistry(), tracer_provider=tracing())
        outlive.install(self.app)
        return outlive.task(timeout=TIMEOUT, name="work")(self._save).submit

    def _by_hand(self) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(TIMEOUT):
                await self._save()

        task = asyncio.create_task(self._told.around(bounded, time.perf_counter()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _more_sockets() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _connected(port: int, sockets: int) -> list[Asking]:
    loop = asyncio.get_running_loop()
    connected: list[Asking] = []
    while len(connected) < sockets:
        pairs = await asyncio.gather(
            *(
                loop.create_connection(lambda: Asking(*KINDS["messages"]), "127.0.0.1", port)
                for _ in range(min(AT_ONCE, sockets - len(connected)))
            )
        )
        await asyncio.gather(*(asking.ready() for _, asking in pairs))
        connected += [asking for _, asking in pairs]
    return connected


def _saved(port: int) -> tuple[int, float, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/saved") as response:
        saved, last, cpu = json.load(response)
    return int(saved), float(last), float(cpu)


async def _drop(port: int, sockets: int) -> tuple[float, float]:
    connected = await _connected(port, sockets)
    await asyncio.sleep(0.5)
    saved_before, _, cpu_before = _saved(port)
    began = time.monotonic()
    for asking in connected:
        asking.transport.abort()
    while True:
        await asyncio.sleep(0.2)
        with suppress(OSError):  # the server has its hands full
            saved, last, cpu = await asyncio.to_thread(_saved, port)
            if saved - saved_before == sockets:
                return last - began, cpu - cpu_before
            if time.monotonic() - began > LONGEST:
                raise RuntimeError(f"{sockets} sockets were dropped, and {saved} saves done in {LONGEST} s")


def measure(sockets: int, storms: int) -> list[Storm]:
    """Let so many storms loose on each, in turn, each on a server of its own."""
    seconds: dict[str, list[float]] = {hand: [] for hand in HANDS}
    cpus: dict[str, list[float]] = {hand: [] for hand in HANDS}
    for number in range(storms):
        for hand in HANDS if number % 2 else HANDS[::-1]:
            with server("storm", "serve", hand) as port:
                took, cpu = ask("storm", "drop", port, sockets)
            seconds[hand].append(took)
            cpus[hand].append(cpu)
    return [
        Storm(
            hand,
            sockets,
            median(seconds[hand]),
            median(cpus[hand]),
            median(seconds["Outlive"]) / median(seconds[hand]),
            median(cpus["Outlive"]) / median(cpus[hand]),
        )
        for hand in HANDS
    ]


def main(what: str, *words: str) -> None:
    """Serve, or drop, in this process."""
    _more_sockets()
    if what == "serve":
        serve(Room(words[0]).app)
    else:
        port, sockets = map(int, words)
        with asyncio.Runner(loop_factory=loop_factory("uvloop")) as runner:
            answer(runner.run(_drop(port, sockets)))


if __name__ == "__main__":
    main(*sys.argv[1:])
