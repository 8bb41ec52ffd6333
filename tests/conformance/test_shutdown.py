"""A race that no cell of the matrix runs into by itself: work that is submitted when the lifespan has begun to end."""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from outlive_conformance.process import free_port


@pytest.mark.parametrize("ws", ["websockets", "websockets-sansio", "wsproto"])
def test_what_a_cancelled_handler_submits_after_the_lifespan_began_to_end_is_done(
    ws: str, tmp_path: Path
) -> None:
    # uvicorn runs the lifespan's shutdown as soon as it has cancelled its handlers.
    async def main() -> None:
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "uvicorn", "application:app", "--port", str(port), "--ws", ws,
            "--timeout-graceful-shutdown", "1",
            cwd=Path(__file__).parent,
            env={**os.environ, "SAVED": str(tmp_path / "saved"), "COUNTS": str(tmp_path / "counts")},
            stderr=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(60), httpx.AsyncClient(timeout=30) as client:
                url = f"http://127.0.0.1:{port}"
                while not await answers(client, f"{url}/healthz"):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
                with suppress(httpx.RemoteProtocolError):
                    async with client.stream("GET", f"{url}/slow-clean-up/late") as answer:
                        pieces = answer.aiter_bytes()
                        await anext(pieces)
                        process.send_signal(signal.SIGTERM)
                        async for _ in pieces:
                            pass
                await process.wait()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    asyncio.run(main())
    assert (tmp_path / "saved").read_text().split() == ["late"]
    counts = json.loads((tmp_path / "counts").read_text())
    assert counts["outcomes"]["completed"] == counts["submitted"] == 1


async def answers(client: httpx.AsyncClient, url: str) -> bool:
    with suppress(httpx.TransportError):
        return (await client.get(url)).is_success
    return False
