"""The database: what was said, what was answered, what is exported at this moment."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self, TypeVar

import aiosqlite
from sqlalchemy import (
    URL,
    AsyncAdaptedQueuePool,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Enum,
    ForeignKey,
    Index,
    String,
    Text,
    TypeDecorator,
    create_engine,
    event,
    func,
    insert,
    make_url,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

R = TypeVar("R")

BUSY_TIMEOUT = 4.0
"""Seconds that SQLite waits for a lock of another process. Below the time-out of every task that saves."""

SCHEMA_LOCK = 0x6F75_746C
"""The PostgreSQL advisory lock under which the schema is created."""


class Bill(StrEnum):
    """Whether the tokens of an answer have been paid for."""

    DUE = "due"
    CHARGED = "charged"


def now() -> datetime:
    """The present moment, in UTC."""
    return datetime.now(UTC)


def storable(value: str) -> str:
    """Make any Python string one that both databases take.

    PostgreSQL refuses NUL, and no database takes half a surrogate pair. A pair that was split between two
    tokens is joined; what stays wrong becomes U+FFFD, since one odd character must not cost the whole text.
    """
    joined = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return joined.replace("\0", "\N{REPLACEMENT CHARACTER}")


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


class UTCDateTime(TypeDecorator[datetime]):
    """A moment in UTC: SQLite forgets the zone of what it stores."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002 - SQLAlchemy hands it over
    ) -> datetime | None:
        """Give the zone back."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Base(DeclarativeBase):
    """The tables."""

    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy, which names its type
        datetime: UTCDateTime,
        Bill: Enum(Bill, native_enum=False, length=16, values_callable=list),
    }


class SessionRow(Base):
    """One WebSocket connection to a room."""

    __tablename__ = "sessions"
    __table_args__ = (Index("sessions_of_user", "user", "id"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    room: Mapped[str] = mapped_column(String(64))
    user: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime]


class LineRow(Base):
    """One line that a session said."""

    __tablename__ = "lines"

    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(Text)


class AnswerRow(Base):
    """One completion, whole or cut short."""

    __tablename__ = "answers"
    __table_args__ = (Index("answers_of_user", "user", "id"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user: Mapped[str] = mapped_column(String(64))
    text: Mapped[str] = mapped_column(Text)
    tokens: Mapped[int]
    finished: Mapped[bool]
    bill: Mapped[Bill]
    started_at: Mapped[datetime]


class ExportRow(Base):
    """The lease of one export, open until `released_at` is set."""

    __tablename__ = "exports"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[datetime]
    rows_sent: Mapped[int]
    released_at: Mapped[datetime | None]


@dataclass(slots=True)
class Transcript:
    """What one session said in a room."""

    session: str
    room: str
    user: str
    lines: list[str] = field(default_factory=list)
    started_at: datetime = field(default_factory=now)


@dataclass(slots=True)
class Answer:
    """What the upstream has answered so far."""

    id: str
    user: str
    tokens: list[str] = field(default_factory=list)
    finished: bool = False
    started_at: datetime = field(default_factory=now)


@dataclass(frozen=True, slots=True)
class SavedSession:
    """A session as the database has it; `lines` is their number."""

    id: str
    room: str
    user: str
    lines: int


@dataclass(frozen=True, slots=True)
class SavedAnswer:
    """An answer as the database has it; `tokens` is their number."""

    id: str
    user: str
    text: str
    tokens: int
    finished: bool
    bill: Bill

    @property
    def text_tokens(self) -> int:
        """How many words the text has: the partner's tokens are one word each."""
        return len(self.text.split())


@dataclass(frozen=True, slots=True)
class SavedExport:
    """An export as the database has it."""

    id: str
    user: str
    rows_sent: int
    released_at: datetime | None


@dataclass(frozen=True, slots=True)
class UsedLine:
    """One line in a usage report: its size, not its text."""

    session: str
    n: int
    characters: int
    at: datetime


@dataclass(frozen=True, slots=True)
class UsedAnswer:
    """One answer in a usage report: its size, not its text."""

    id: str
    tokens: int
    finished: bool
    bill: Bill
    at: datetime


def _prepare_sqlite(engine: Engine, begin: str) -> None:
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


class _SQLiteWriter:
    """The one writer that SQLite has at a time: a thread of its own, in which a transaction is one piece.

    An asyncio driver goes from the event loop to its thread and back at each statement. On a busy loop each way
    takes as long as everything else that is ready, and meanwhile the others wait for the writer's lock.
    """

    def __init__(self, url: URL) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite writer")
        self._engine = create_engine(url.set(drivername="sqlite+pysqlite"), hide_parameters=True)
        # One that turns from reader to writer can fail at once; one that begins as writer waits.
        _prepare_sqlite(self._engine, "BEGIN IMMEDIATE")

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
        self._sqlite_writer: _SQLiteWriter | None = None

    async def create(self) -> Self:
        """Connect, and create the tables where they are missing.

        Safe when several processes start at once.
        """
        self._writing = asyncio.Semaphore(self._pool)
        if self._is_sqlite:
            self._engine = self._sqlite()
            await self._turn_to_wal()
            self._sqlite_writer = _SQLiteWriter(self._url)
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

    def _sqlite(self) -> AsyncEngine:
        # Errors are logged, and what people write must not be.
        engine = create_async_engine(
            self._url,
            # SQLAlchemy 2.0 has no pool for SQLite files by default.
            poolclass=AsyncAdaptedQueuePool,
            pool_size=self._pool,
            max_overflow=0,
            hide_parameters=True,
        )

        _prepare_sqlite(engine.sync_engine, "BEGIN")
        return engine

    async def _turn_to_wal(self) -> None:
        """Let readers and the writer work at once. The file remembers it."""
        deadline = asyncio.get_running_loop().time() + BUSY_TIMEOUT
        async with self._engine.connect() as connection:
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
