"""An app whose handlers submit in their clean-up, to be run by a real server.

It appends to the file SAVED what was really done, and writes its counts to COUNTS when it has closed.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse

from outlive import DisconnectDetails, Observer, Outlive

SAVED = Path(os.environ["SAVED"])
COUNTS = Path(os.environ["COUNTS"])


class Account(Observer):
    def __init__(self) -> None:
        self.causes: list[str] = []

    def disconnected(self, disconnect: DisconnectDetails) -> None:
        self.causes.append(f"{disconnect.route} {disconnect.cause}")

    def closed(self) -> None:
        counts = outlive.counts
        COUNTS.write_text(
            json.dumps(
                {
                    "submitted": counts.submitted,
                    "outcomes": counts.outcomes,
                    "causes": self.causes,
                    "others": sorted(
                        task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()
                    ),
                }
            )
        )


outlive = Outlive(drain_timeout=10.0, observers=[Account()])
app = FastAPI()
outlive.install(app)


@outlive.task(timeout=5.0)
async def save(what: str) -> None:
    await asyncio.sleep(0.5)
    with SAVED.open("a") as file:  # noqa: ASYNC230 - a few bytes
        file.write(f"{what}\n")


@app.get("/stream/{what}")
async def stream(what: str, seconds: float) -> StreamingResponse:
    async def numbers() -> AsyncIterator[str]:
        try:
            for number in range(int(seconds / 0.05)):
                yield f"{number}\n"
                await asyncio.sleep(0.05)
        finally:
            # The race of servers that run the lifespan's shutdown as soon as they have cancelled their handlers.
            save.submit(what)

    return StreamingResponse(numbers())


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
                save.submit(what)

    return StreamingResponse(numbers())


@app.websocket("/websocket/{what}")
async def websocket(ws: WebSocket, what: str) -> None:
    await ws.accept()
    try:
        async for line in ws.iter_text():
            await ws.send_text(line)
    finally:
        save.submit(what)


@app.websocket("/awaits/{what}")
async def awaits(ws: WebSocket, what: str) -> None:
    await ws.accept()
    try:
        async for line in ws.iter_text():
            await ws.send_text(line)
    finally:
        await save(what)
