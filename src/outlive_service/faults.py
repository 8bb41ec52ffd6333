"""Faults that are switched on and off from outside, while the processes of a demo run."""

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from functools import partial

import httpx

from outlive_service.demo import Demo
from outlive_service.store import database_url

LOCKED = 2.0
"""Seconds that the database is locked at a time: less than the service waits for it."""

Plan = Mapping[str, Mapping[str, float]]
Goes = Callable[[Demo], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def partner_goes_wrong(demo: Demo, plan: Plan) -> AsyncIterator[None]:
    """The partner's answers come late, as errors or not at all, as planned (`PUT /faults`)."""
    async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
        faults = f"{demo.addresses.partner}/faults"
        before = (await client.get(faults)).json()
        (await client.put(faults, json=plan)).raise_for_status()
        try:
            yield
        finally:
            (await client.put(faults, json=before)).raise_for_status()


@asynccontextmanager
async def partner_stops(demo: Demo) -> AsyncIterator[None]:
    """The partner's process doesn't get to do anything; the system still takes connections in its name."""
    os.kill(demo.partner.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(demo.partner.pid, signal.SIGCONT)


@asynccontextmanager
async def database_is_locked(demo: Demo, *, at_a_time: float = LOCKED) -> AsyncIterator[None]:
    """Hold the writer's lock of the SQLite file, which another process writes to, again and again."""
    file = str(database_url(demo.database_url).database)

    async def lock_and_let_go() -> None:
        with closing(sqlite3.connect(file, isolation_level=None, timeout=0.0)) as other:
            while True:
                pause = 0.01
                with suppress(sqlite3.OperationalError):  # the service is writing just now
                    other.execute("BEGIN IMMEDIATE")
                    await asyncio.sleep(at_a_time)
                    other.execute("ROLLBACK")
                    pause = at_a_time / 10
                await asyncio.sleep(pause)

    locking = asyncio.create_task(lock_and_let_go())
    try:
        yield
    finally:
        locking.cancel()
        await asyncio.wait([locking])


SLOW: Plan = {"notices": {"latency": 1.0}, "charges": {"latency": 1.0}, "completions": {"latency": 0.5}}
HANGS: Plan = {
    "notices": {"hang_rate": 0.5},
    "charges": {"hang_rate": 0.3},
    "completions": {"hang_rate": 0.1},
}
ERRORS: Plan = {
    "notices": {"error_rate": 0.5},
    "charges": {"error_rate": 0.5},
    "completions": {"error_rate": 0.3},
}
RESETS: Plan = {
    "notices": {"reset_rate": 0.5},
    "charges": {"reset_rate": 0.5},
    "completions": {"reset_rate": 0.3},
}

FAULTS: Mapping[str, Goes] = {
    "partner slow": partial(partner_goes_wrong, plan=SLOW),
    "partner hangs": partial(partner_goes_wrong, plan=HANGS),
    "partner errors": partial(partner_goes_wrong, plan=ERRORS),
    "partner resets": partial(partner_goes_wrong, plan=RESETS),
    "partner stopped": partner_stops,
    "database locked": database_is_locked,
}
"""What a soak goes through, by name."""
