"""SQLite as a service's database: many readers and one writer, none of which holds up the event loop."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import aiosqlite
from sqlalchemy import URL, AsyncAdaptedQueuePool, Connection, Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

R = TypeVar("R")

BUSY_TIMEOUT = 4.0
"""Seconds that SQLite waits for a lock of another process. Below the time-out of every task that saves."""


def sqlite_readers(url: URL, pool: int) -> AsyncEngine:
    """An engine for those who read, which so many can do at once while one writes."""
    # Errors are logged, and what people write must not be.
    engine = create_async_engine(
        url,
        # SQLAlchemy 2.0 has no pool for SQLite files by default.
        poolclass=AsyncAdaptedQueuePool,
        pool_size=pool,
        max_overflow=0,
        hide_parameters=True,
    )
    _prepare(engine.sync_engine, "BEGIN")
    return engine


async def turn_to_wal(engine: AsyncEngine) -> None:
    """Let readers and the writer work at once. The file remembers it."""
    deadline = asyncio.get_running_loop().time() + BUSY_TIMEOUT
    async with engine.connect() as connection:
        # Past SQLAlchemy, which would begin a transaction, and in one the mode can't be changed.
        driver = (await connection.get_raw_connection()).driver_connection
        assert isinstance(driver, aiosqlite.Connection)
        while True:
            try:
                async with driver.execute("PRAGMA journal_mode = WAL"):
                    return
            except sqlite3.OperationalError:
                # When two processes do this at once, SQLite fails one of them in spite of busy_timeout.
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.02)


def _prepare(engine: Engine, begin: str) -> None:
    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        # Transactions begin as the listener below says, not as the driver guesses from the statement.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000:.0f}")
        # With WAL this outlives a crash of the process; only a power cut can take the last commits.
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)


class SQLiteWriter:
    """The one writer that SQLite has at a time: a thread of its own, in which a transaction is one piece.

    An asyncio driver goes from the event loop to its thread and back at each statement. On a busy loop each way
    takes as long as everything else that is ready, and meanwhile the others wait for the writer's lock.
    """

    def __init__(self, url: URL) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite writer")
        self._engine = create_engine(url.set(drivername="sqlite+pysqlite"), hide_parameters=True)
        # One that turns from reader to writer can fail at once; one that begins as writer waits.
        _prepare(self._engine, "BEGIN IMMEDIATE")

    async def write(self, work: Callable[[Connection], R]) -> R:
        """Do the work in a transaction. Cancelled in line, it isn't begun; later, it ends by itself."""

        def transaction() -> R:
            with self._engine.begin() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)

    async def close(self) -> None:
        """End the thread, with what it has begun."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown(wait=False)
