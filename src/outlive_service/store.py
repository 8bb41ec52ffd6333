"""The database: what was said, what was answered, what is exported at this moment."""

import asyncio
from collections.abc import Callable
from typing import Self, TypeVar

from sqlalchemy import URL, Connection, func, insert, make_url, select, tuple_, update
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from outlive_service.records import (
    Answer,
    Bill,
    SavedAnswer,
    SavedExport,
    SavedSession,
    Transcript,
    UsedAnswer,
    UsedLine,
    now,
)
from outlive_service.sqlite import SQLiteWriter, sqlite_readers, turn_to_wal
from outlive_service.tables import AnswerRow, Base, ExportRow, LineRow, SessionRow, storable

R = TypeVar("R")

SCHEMA_LOCK = 0x6F75_746C
"""The PostgreSQL advisory lock under which the schema is created."""


def database_url(value: str) -> URL:
    """Read a database URL and choose its asyncio driver.

    Raises:
        ValueError: it is no URL, an unknown database, or SQLite without a file.
    """
    try:
        url = make_url(value)
    except ArgumentError:
        # SQLAlchemy's own message repeats the value, and the value may hold a password.
        raise ValueError("not a database URL such as sqlite:///outlive.db") from None
    match url.drivername:
        case "sqlite" | "sqlite+aiosqlite":
            if url.database in (None, "", ":memory:"):
                raise ValueError("SQLite needs a file, as in sqlite:///outlive.db")
            return url.set(drivername="sqlite+aiosqlite")
        case "postgres" | "postgresql" | "postgresql+asyncpg":
            if "sslmode" in url.query:
                # Hosting services hand out libpq's name for what asyncpg calls ssl.
                url = url.update_query_dict({"ssl": url.query["sslmode"]}).difference_update_query(
                    ["sslmode"]
                )
            return url.set(drivername="postgresql+asyncpg")
        case _:
            raise ValueError("the database must be sqlite or postgresql")


class Store:
    """The database behind the service.

    Each method opens a session of its own, so that it works in a run whose connection has long gone.

    Args:
        url: SQLite or PostgreSQL, with or without the driver's name.
        pool: How many database connections there are at most.

    Raises:
        ValueError: the URL can't work.
    """

    def __init__(self, url: str, *, pool: int = 5) -> None:
        self._url = database_url(url)
        self._pool = pool
        self._engine: AsyncEngine
        self._reads: async_sessionmaker[AsyncSession]
        self._writing: asyncio.Semaphore
        self._sqlite_writer: SQLiteWriter | None = None

    async def create(self) -> Self:
        """Connect, and create the tables where they are missing.

        Safe when several processes start at once.
        """
        self._writing = asyncio.Semaphore(self._pool)
        if self._is_sqlite:
            self._engine = sqlite_readers(self._url, self._pool)
            await turn_to_wal(self._engine)
            self._sqlite_writer = SQLiteWriter(self._url)
        else:
            self._engine = self._postgresql()
        self._reads = async_sessionmaker(self._engine, expire_on_commit=False)

        def create(connection: Connection) -> None:
            if not self._is_sqlite:
                # CREATE TABLE IF NOT EXISTS of two transactions at once fails in PostgreSQL's catalogue.
                connection.execute(select(func.pg_advisory_xact_lock(SCHEMA_LOCK)))
            Base.metadata.create_all(connection)

        await self._write(create)
        return self

    async def close(self) -> None:
        """Close every connection."""
        if self._sqlite_writer is not None:
            await self._sqlite_writer.close()
        await self._engine.dispose()

    @property
    def _is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    def _postgresql(self) -> AsyncEngine:
        return create_async_engine(
            self._url,
            pool_size=self._pool,
            max_overflow=0,
            hide_parameters=True,
            # The database may have been restarted since the connection was last used.
            pool_pre_ping=True,
            connect_args={"timeout": 10, "command_timeout": 30},
        )

    async def _write(self, work: Callable[[Connection], R]) -> R:
        """Do the work in a transaction: all or nothing."""
        if self._sqlite_writer is not None:
            return await self._sqlite_writer.write(work)
        async with self._writing, self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def save_session(self, transcript: Transcript) -> None:
        """Save a session and its lines, all or nothing.

        Raises:
            IntegrityError: it was saved before.
        """

        def save(connection: Connection) -> None:
            connection.execute(
                insert(SessionRow).values(
                    id=transcript.session,
                    room=storable(transcript.room),
                    user=storable(transcript.user),
                    started_at=transcript.started_at,
                    ended_at=now(),
                )
            )
            if transcript.lines:
                connection.execute(
                    insert(LineRow),
                    [
                        {"session_id": transcript.session, "n": n, "text": storable(line)}
                        for n, line in enumerate(transcript.lines)
                    ],
                )

        await self._write(save)

    async def save_answer(self, answer: Answer) -> None:
        """Save an answer as far as it came; its bill is due.

        Raises:
            IntegrityError: it was saved before.
        """
        row = insert(AnswerRow).values(
            id=answer.id,
            user=storable(answer.user),
            text=storable("".join(answer.tokens)),
            tokens=len(answer.tokens),
            finished=answer.finished,
            bill=Bill.DUE,
            started_at=answer.started_at,
        )
        await self._write(lambda connection: connection.execute(row))

    async def mark_charged(self, answer_id: str) -> None:
        """Note that an answer's tokens have been paid for.

        Raises:
            LookupError: no such answer is due.
        """
        due = (
            update(AnswerRow)
            .where(AnswerRow.id == answer_id, AnswerRow.bill == Bill.DUE)
            .values(bill=Bill.CHARGED)
            .returning(AnswerRow.id)
        )
        if await self._write(lambda connection: connection.execute(due).one_or_none()) is None:
            raise LookupError(f"answer {answer_id} is unknown or was charged before")

    async def open_export(self, export_id: str, user: str) -> None:
        """Open the lease of an export.

        Raises:
            IntegrityError: it was opened before.
        """
        lease = insert(ExportRow).values(id=export_id, user=storable(user), started_at=now(), rows_sent=0)
        await self._write(lambda connection: connection.execute(lease))

    async def release_export(self, export_id: str, rows_sent: int) -> bool:
        """Close the lease of an export. Tell whether there was an open one."""
        lease = (
            update(ExportRow)
            .where(ExportRow.id == export_id, ExportRow.released_at.is_(None))
            .values(rows_sent=rows_sent, released_at=now())
            .returning(ExportRow.id)
        )
        return await self._write(lambda connection: connection.execute(lease).one_or_none()) is not None

    async def used_lines(self, user: str, after: UsedLine | None, limit: int) -> list[UsedLine]:
        """The page of a user's lines that follows `after`, of at most `limit` rows."""
        query = (
            select(LineRow.session_id, LineRow.n, func.length(LineRow.text), SessionRow.started_at)
            .join(SessionRow, SessionRow.id == LineRow.session_id)
            .where(SessionRow.user == storable(user))
            .order_by(LineRow.session_id, LineRow.n)
            .limit(limit)
        )
        if after is not None:
            query = query.where(tuple_(LineRow.session_id, LineRow.n) > (after.session, after.n))
        async with self._reads() as session, session.begin():
            return [UsedLine(*row) for row in await session.execute(query)]

    async def used_answers(self, user: str, after: UsedAnswer | None, limit: int) -> list[UsedAnswer]:
        """The page of a user's answers that follows `after`, of at most `limit` rows."""
        query = (
            select(AnswerRow.id, AnswerRow.tokens, AnswerRow.finished, AnswerRow.bill, AnswerRow.started_at)
            .where(AnswerRow.user == storable(user))
            .order_by(AnswerRow.id)
            .limit(limit)
        )
        if after is not None:
            query = query.where(AnswerRow.id > after.id)
        async with self._reads() as session, session.begin():
            return [UsedAnswer(*row) for row in await session.execute(query)]

    async def sessions(self) -> list[SavedSession]:
        """Every session with the number of its lines."""
        query = (
            select(SessionRow.id, SessionRow.room, SessionRow.user, func.count(LineRow.n))
            .outerjoin(LineRow, LineRow.session_id == SessionRow.id)
            .group_by(SessionRow.id)
            .order_by(SessionRow.id)
        )
        async with self._reads() as session, session.begin():
            return [SavedSession(*row) for row in await session.execute(query)]

    async def answers(self) -> list[SavedAnswer]:
        """Every answer."""
        query = select(
            AnswerRow.id, AnswerRow.user, AnswerRow.text, AnswerRow.tokens, AnswerRow.finished, AnswerRow.bill
        ).order_by(AnswerRow.id)
        async with self._reads() as session, session.begin():
            return [SavedAnswer(*row) for row in await session.execute(query)]

    async def exports(self) -> list[SavedExport]:
        """Every export."""
        query = select(ExportRow.id, ExportRow.user, ExportRow.rows_sent, ExportRow.released_at).order_by(
            ExportRow.id
        )
        async with self._reads() as session, session.begin():
            return [SavedExport(*row) for row in await session.execute(query)]
