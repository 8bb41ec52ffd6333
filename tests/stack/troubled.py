"""An app with every trouble that the template's service has only by bad luck: python troubled.py PORT."""

import asyncio
import sys
import time

import uvicorn
from fastapi import FastAPI, HTTPException

from outlive import Outlive

outlive = Outlive(drain_timeout=2.0, max_running=4, max_pending=5, cancel_grace=0.1)
app = FastAPI()
outlive.install(app)


@outlive.task(timeout=0.1)
async def ignores_cancellation() -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


@outlive.task(timeout=600.0, max_running=1)
async def takes_for_ever() -> None:
    await asyncio.Event().wait()


@app.post("/stick")
async def stick() -> None:
    """One run gets stuck."""
    ignores_cancellation.submit()


@app.post("/rush")
async def rush() -> None:
    """More runs than there are places."""
    for _ in range(10):
        takes_for_ever.submit()


@app.post("/block")
async def block() -> None:
    """The event loop stands still."""
    time.sleep(0.6)  # noqa: ASYNC251 - that is the trouble


@app.post("/fail")
async def fail() -> None:
    """A request ends badly."""
    raise HTTPException(503)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), access_log=False, timeout_graceful_shutdown=0)
