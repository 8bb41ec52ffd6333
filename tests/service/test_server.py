"""`outlive serve` as a process."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

pytestmark = pytest.mark.anyio

TOKEN = "a-token-of-a-test-and-of-nothing-else"
BEARER = {"authorization": f"Bearer {TOKEN}"}


async def refused(address: str) -> None:
    """Wait until nobody listens there any more."""
    host, port = address.split(":")
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except (ConnectionRefusedError, ConnectionResetError):
                # Reset: the socket was closed while this connection stood in its backlog.
                return
            writer.close()
            await asyncio.sleep(0.01)


async def test_pages_at_an_address_of_their_own_show_the_drain_to_its_end(serve_process: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_partner:
        partner = f"http://127.0.0.1:{silent_partner.getsockname()[1]}"
        async with (
            serve_process(PAGES_PORT=0, PAGES_TOKEN=TOKEN, PARTNER_URL=partner, NOTIFY_TIMEOUT=2) as server,
            httpx.AsyncClient() as client,
        ):
            pages = await server.address("pages are listening")
            address = await server.address("listening")
            assert (await client.get(f"http://{address}/")).status_code == 200
            for path in ("/metrics", "/healthz", "/readyz"):
                assert (await client.get(f"http://{address}{path}", headers=BEARER)).status_code == 404
            assert (await client.get(f"http://{pages}/metrics")).status_code == 401
            assert (await client.get(f"http://{pages}/readyz")).json() == {"state": "open"}
            async with connect(f"ws://{address}/rooms/lobby?user=ann") as ann:
                await ann.recv()
            server.process.send_signal(signal.SIGTERM)
            await server.event("drain started")
            # The partner doesn't answer, so the drain takes as long as the notice may.
            await refused(address)
            assert (await client.get(f"http://{pages}/readyz")).json() == {"state": "draining"}
            metrics = await client.get(f"http://{pages}/metrics", headers=BEARER)
            assert "\noutlive_draining 1.0\n" in metrics.text
            closed = await server.event("closed")
            assert closed["outcomes"]["timed_out"] == 1
            async with asyncio.timeout(10):
                assert await server.process.wait() == -signal.SIGTERM
    assert TOKEN not in json.dumps(server.events)


async def test_a_port_of_the_pages_that_is_taken_is_told(serve_process: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with serve_process(PAGES_PORT=taken.getsockname()[1]) as server:
            await server.event("[Errno 98] Address already in use")
            assert await server.process.wait() > 0


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "may read the metrics"),
        ({"PORT": "80"}, "Outlive's pages are at 127.0.0.1:80, "),
        ({"PAGES_PORT": "9000", "PAGES_TOKEN": TOKEN}, "Outlive's pages are at 127.0.0.1:9000, "),
        ({"PAGES_TOKEN": "hunter2"}, "has 7 characters and can be guessed: use at least 16"),
        ({"PAGES_PROTECT_HEALTH": "true"}, "set a token too"),
    ],
)
def test_check_tells_who_may_read_the_pages(variables: dict[str, str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "outlive", "check"],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told in done.stdout + done.stderr
    assert ("may read the metrics" in done.stdout) == ("PAGES_TOKEN" not in variables and not done.returncode)
    for secret in (TOKEN, "hunter2"):
        assert secret not in done.stdout + done.stderr
