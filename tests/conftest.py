"""`outlive serve` as a process of its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest


class ServiceProcess:
    """A process of the service, and the events that it logged so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []

    async def event(self, name: str) -> dict[str, Any]:
        """Read on until this event."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            async for line in self.process.stdout:
                event: dict[str, Any] = json.loads(line)
                self.events.append(event)
                if event["event"] == name:
                    return event
        raise AssertionError(f"no {name!r} among {self.events}")

    async def address(self, name: str = "listening") -> str:
        """Where it listens."""
        event = await self.event(name)
        return f"{event['host']}:{event['port']}"

    async def stop(self) -> dict[str, Any]:
        """Stop it by SIGTERM, as is usual, and give its account, whose sums are right."""
        self.process.send_signal(signal.SIGTERM)
        closed = await self.event("closed")
        async with asyncio.timeout(30):
            assert await self.process.wait() == -signal.SIGTERM
        assert closed["submitted"] == sum(closed["outcomes"].values())
        return closed


@pytest.fixture
def serve_process(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[ServiceProcess]]:
    """`async with serve_process(PORT=0, ...) as process`: the service, with these settings and no others."""

    @asynccontextmanager
    async def serve(
        *,
        command: tuple[str, ...] = ("-m", "outlive", "serve"),
        stdout: int = subprocess.PIPE,
        **variables: object,
    ) -> AsyncIterator[ServiceProcess]:
        environment = {
            "PATH": os.environ["PATH"],
            "PORT": "0",
            "DATABASE_URL": f"sqlite:///{tmp_path / 'outlive.db'}",
            **{name: str(value) for name, value in variables.items()},
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            env=environment,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            limit=2**20,
        )
        try:
            yield ServiceProcess(process)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    return serve
