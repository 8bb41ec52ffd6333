"""A server of the matrix as a process."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import httpx

from outlive_conformance.matrix import End, Group
from outlive_conformance.servers import TEST_CLIENT, arguments
from outlive_conformance.state import STATE_PATH
from outlive_conformance.surroundings import Surroundings
from outlive_service.demo import last_words

PATIENCE = 60.0
"""Seconds for what must happen: a start, a stop, the last outcome."""
WATCHED_FILE = Path("watched", "watched.py")
"""In a folder of its own: some servers reload at a change of any file."""


class ProcessError(Exception):
    """A server couldn't be started; the message has its last words."""


class ServerProcess:
    """A server that runs the app, alone in a process group of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.port = port
        self.log = log
        self._process = process

    @property
    def running(self) -> bool:
        """Whether it hasn't ended."""
        return self._process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started, and not to its workers."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def ended(self, seconds: float = PATIENCE) -> bool:
        """Wait for its end; tell whether it came in time. What is left of it is killed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
        in_time = not self.running
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        return in_time


@asynccontextmanager
async def serving(group: Group, surroundings: Surroundings) -> AsyncIterator[ServerProcess]:
    """Run the group's server until the block is left.

    Raises:
        ProcessError: it didn't start.
    """
    folder = Path(surroundings.folder)
    (folder / WATCHED_FILE).parent.mkdir()
    (folder / WATCHED_FILE).touch()
    for _ in range(3):  # another process can take the port between the look and the start
        process = await _start(group, surroundings, free_port())
        try:
            if await _answers(process):
                yield process
                return
        finally:
            await process.ended(0)
    raise ProcessError(f"{group.server} didn't start; its last words:\n{last_words(process.log)}")


async def _start(group: Group, surroundings: Surroundings, port: int) -> ServerProcess:
    server, ends = group.server, group.ends
    further: list[str] = []
    if any(end.has_grace for end in ends):
        further += server.grace
    if End.WORKERS in ends and server.workers is not None:
        further += server.workers[0]
    if End.RELOAD in ends and server.reload is not None:
        further += server.reload(str(Path(surroundings.folder, WATCHED_FILE.parent)))
    log = Path(surroundings.folder) / "server.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *arguments(server, port, further),
            env=_environment(surroundings),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return ServerProcess(process, port, log)


async def leave_test_client(surroundings: Surroundings, paths: list[str]) -> None:
    """Connect to each path by Starlette's TestClient in a process of its own, and leave.

    Raises:
        ProcessError: it didn't come to its end.
    """
    log = Path(surroundings.folder) / "server.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *arguments(TEST_CLIENT, 0, ()),
            env=_environment(surroundings),
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
        )
    try:
        async with asyncio.timeout(PATIENCE):
            await process.communicate(json.dumps(paths).encode())
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.returncode:
        raise ProcessError(f"the test client failed; its last words:\n{last_words(log)}")


def _environment(surroundings: Surroundings) -> dict[str, str]:
    return {**os.environ, "OUTLIVE_CONFORMANCE": json.dumps(asdict(surroundings))}


async def _answers(process: ServerProcess) -> bool:
    deadline = time.monotonic() + PATIENCE
    async with httpx.AsyncClient(trust_env=False) as client:
        while process.running and time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                await client.get(f"http://127.0.0.1:{process.port}{STATE_PATH}")
                return True
            await asyncio.sleep(0.1)
    return False


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
