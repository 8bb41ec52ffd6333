"""Whoever reads the log stops reading."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

VISITS = 150


@pytest.mark.anyio
@pytest.mark.reliability("fault", "nobody reads the log any more: the pipe is full")
async def test_a_full_pipe_holds_up_neither_the_service_nor_its_stop(
    serve_process: Any, result: Callable[[str], None]
) -> None:
    settings = {"LOG_LEVEL": "debug", "PARTNER_URL": "http://127.0.0.1:9", "DEPARTURE_GRACE": 0}
    reading, writing = os.pipe()
    async with serve_process(stdout=writing, **settings) as server, httpx.AsyncClient() as client:
        os.close(writing)
        with os.fdopen(os.dup(reading), buffering=1) as log:
            event: dict[str, Any] = {}
            while event.get("event") != "listening":
                event = json.loads(await asyncio.to_thread(log.readline))
        # From here on nobody reads.
        address = f"{event['host']}:{event['port']}"
        for number in range(VISITS):
            async with connect(f"ws://{address}/rooms/lobby?user=ann-{number}") as ann:
                async with asyncio.timeout(10):
                    await ann.recv()
                    await ann.send("hello")
                    await ann.recv()
        ready = await client.get(f"http://{address}/readyz", timeout=10)
        assert ready.json() == {"state": "open"}
        async with asyncio.timeout(20):
            while (await saved(client, address)) < VISITS:  # noqa: ASYNC110 - it happens elsewhere
                await asyncio.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await server.process.wait() == -signal.SIGTERM
        with os.fdopen(reading, "rb") as log:
            left = log.read()
        events = [json.loads(line)["event"] for line in left.splitlines()[:-1]]
        assert "run ended: save_transcript" in events
        assert "drain started" not in events, "the pipe was full long before"
        result(f"{VISITS} visits served and saved, and stopped in order, with {len(left):,} bytes unread")


async def saved(client: httpx.AsyncClient, address: str) -> float:
    for line in (await client.get(f"http://{address}/metrics")).text.splitlines():
        if line.startswith('outlive_runs_total{outcome="completed",task="save_transcript"}'):
            return float(line.split()[-1])
    return 0.0
