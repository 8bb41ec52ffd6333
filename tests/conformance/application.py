"""An app whose handler submits late in its clean-up, to be run by a real server.

It appends to the file SAVED what was really done, and writes its counts to COUNTS when it has closed.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from outlive import Observer, Outlive


class Account(Observer):
    def closed(self) -> None:
        counts = outlive.counts
        Path(os.environ["COUNTS"]).write_text(
            json.dumps({"submitted": counts.submitted, "outcomes": counts.outcomes})
        )


outlive = Outlive(drain_timeout=10.0, observers=[Account()])
app = FastAPI()
outlive.install(app)


@outlive.task(timeout=5.0)
async def save(what: str) -> None:
    await asyncio.sleep(0.5)
    with Path(os.environ["SAVED"]).open("a") as file:  # noqa: ASYNC230 - a few bytes
        file.write(f"{what}\n")


@app.get("/slow-clean-up/{what}")
async def slow_clean_up(what: str) -> StreamingResponse:
    async def numbers() -> AsyncIterator[str]:
        try:
            for number in range(1_000):
                yield f"{number}\n"
                await asyncio.sleep(0.05)
        finally:
            try:
                await asyncio.sleep(0.3)
            finally:
                # The lifespan's shutdown has begun by now.
                save.submit(what)

    return StreamingResponse(numbers())
