import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from outlive_service.records import Answer, Bill, SavedAnswer, SavedSession, Transcript, UsedAnswer, UsedLine
from outlive_service.store import Store, database_url
from outlive_service.tables import storable

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///x.db", "sqlite+aiosqlite"),
        ("sqlite+aiosqlite:////tmp/x.db", "sqlite+aiosqlite"),
        ("postgres://u:p@h/d", "postgresql+asyncpg"),
        ("postgresql://u:p@h/d", "postgresql+asyncpg"),
        ("postgresql+asyncpg://u:p@h/d", "postgresql+asyncpg"),
    ],
)
def test_an_url_gets_its_asyncio_driver(given: str, driver: str) -> None:
    assert database_url(given).drivername == driver


def test_sslmode_becomes_ssl() -> None:
    url = database_url("postgres://h/d?sslmode=require&application_name=x")
    assert dict(url.query) == {"ssl": "require", "application_name": "x"}


@pytest.mark.parametrize(
    "given",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://u:hunter2@h/d",
        "postgresql+psycopg://u:hunter2@h/d",
        "hunter2",
    ],
)
def test_an_url_that_cannot_work_is_refused_without_repeating_it(given: str) -> None:
    with pytest.raises(ValueError, match=r"database|SQLite") as refusal:
        database_url(given)
    assert "hunter2" not in str(refusal.value)


def test_storable_joins_pairs_and_replaces_what_no_database_takes() -> None:
    assert storable("a\ud83d" + "\ude00b") == "a\U0001f600b"
    assert storable("\ud83d x \0") == "\ufffd x \ufffd"
    assert storable("plain, ünïcode") == "plain, ünïcode"


async def test_a_session_is_saved_with_its_lines_once(store: Store) -> None:
    transcript = Transcript("s1", "room", "ann", ["one", "two\0", "three"])
    await store.save_session(transcript)
    await store.save_session(Transcript("s2", "room", "bob"))
    with pytest.raises(IntegrityError):
        await store.save_session(transcript)
    assert await store.sessions() == [
        SavedSession("s1", "room", "ann", 3),
        SavedSession("s2", "room", "bob", 0),
    ]


async def test_no_error_repeats_what_was_written(store: Store) -> None:
    answer = Answer("a1", "ann", ["hunter2"])
    await store.save_answer(answer)
    with pytest.raises(IntegrityError) as refusal:
        await store.save_answer(answer)
    assert "hunter2" not in f"{refusal.value} {refusal.value!r} {refusal.value.__cause__}"


async def test_an_answer_is_saved_once_and_charged_once(store: Store) -> None:
    answer = Answer("a1", "ann", ["one ", "two "], finished=True)
    await store.save_answer(answer)
    with pytest.raises(IntegrityError):
        await store.save_answer(answer)
    assert await store.answers() == [SavedAnswer("a1", "ann", "one two ", 2, True, Bill.DUE)]
    await store.mark_charged("a1")
    (saved,) = await store.answers()
    assert saved.bill is Bill.CHARGED
    assert saved.text_tokens == saved.tokens
    with pytest.raises(LookupError):
        await store.mark_charged("a1")
    with pytest.raises(LookupError):
        await store.mark_charged("unknown")


async def test_a_lease_is_opened_once_and_released_once(store: Store) -> None:
    await store.open_export("e1", "ann")
    with pytest.raises(IntegrityError):
        await store.open_export("e1", "ann")
    (lease,) = await store.exports()
    assert lease.released_at is None
    assert await store.release_export("e1", 7)
    assert not await store.release_export("e1", 8)
    assert not await store.release_export("unknown", 1)
    (lease,) = await store.exports()
    assert lease.rows_sent == 7
    assert lease.released_at is not None
    assert lease.released_at.tzinfo is not None


async def test_usage_is_read_page_by_page_without_gap_or_repetition(store: Store) -> None:
    for session in ("s1", "s2", "s3"):
        await store.save_session(Transcript(session, "room", "ann", ["x" * n for n in range(5)]))
    await store.save_session(Transcript("other", "room", "bob", ["x"]))
    for answer in "abcde":
        await store.save_answer(Answer(answer, "ann", ["t "]))
    lines: list[UsedLine] = []
    while page := await store.used_lines("ann", lines[-1] if lines else None, 4):
        assert len(page) <= 4
        lines += page
    assert [(line.session, line.n, line.characters) for line in lines] == [
        (session, n, n) for session in ("s1", "s2", "s3") for n in range(5)
    ]
    assert all(line.at.tzinfo for line in lines)
    answers: list[UsedAnswer] = []
    while more := await store.used_answers("ann", answers[-1] if answers else None, 2):
        answers += more
    assert [answer.id for answer in answers] == list("abcde")
    assert answers[0].bill is Bill.DUE


async def test_many_save_at_once_while_others_read(store: Store) -> None:
    async def read() -> None:
        while len(await store.sessions()) < 200:  # noqa: ASYNC110 - reading is what is tested
            await asyncio.sleep(0)

    async with asyncio.timeout(60):
        await asyncio.gather(
            read(),
            *(store.save_session(Transcript(f"{n:032}", "room", "ann", ["x"] * 5)) for n in range(200)),
        )
    assert sum(session.lines for session in await store.sessions()) == 1_000


async def test_several_processes_may_start_at_once_and_save_at_once(database: str) -> None:
    # Each store has an engine of its own, so to the database they are as good as processes.
    stores = [Store(database, pool=2) for _ in range(6)]
    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*(store.create() for store in stores))
            await asyncio.gather(
                *(
                    stores[n % len(stores)].save_session(Transcript(f"{n:032}", "room", "ann", ["x"] * 5))
                    for n in range(200)
                )
            )
        assert len(await stores[0].sessions()) == 200
    finally:
        await asyncio.gather(*(store.close() for store in stores))


async def test_readers_are_served_while_writers_wait_for_another_process(tmp_path: Path) -> None:
    path = tmp_path / "outlive.db"
    store = await Store(f"sqlite:///{path}").create()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        saves = [
            asyncio.create_task(store.save_session(Transcript(f"s{n}", "room", "ann"))) for n in range(20)
        ]
        async with asyncio.timeout(2):
            for _ in range(20):
                assert await store.sessions() == []
        other.execute("COMMIT")
    await asyncio.gather(*saves)
    assert len(await store.sessions()) == 20
    await store.close()


async def test_a_cancelled_save_is_all_or_nothing_and_leaks_no_connection(database: str) -> None:
    store = await Store(database, pool=1).create()
    try:
        for steps in range(0, 60, 2):
            save = asyncio.create_task(
                store.save_session(Transcript(f"{steps:032}", "room", "ann", ["x"] * 5))
            )
            for _ in range(steps):
                await asyncio.sleep(0)
            save.cancel()
            await asyncio.wait([save])
        async with asyncio.timeout(10):
            await store.save_session(Transcript("after", "room", "ann", ["x"] * 5))
            saved = await store.sessions()
        assert {session.lines for session in saved} == {5}
    finally:
        await store.close()


async def test_a_store_can_be_created_again_after_its_close(database: str) -> None:
    store = Store(database)
    for n in range(2):
        await store.create()
        await store.save_session(Transcript(f"s{n}", "room", "ann"))
        await store.close()
    await store.create()
    assert len(await store.sessions()) == 2
    await store.close()


async def test_sqlite_is_set_up_for_many_processes(tmp_path: Path) -> None:
    path = tmp_path / "outlive.db"
    store = await Store(f"sqlite:///{path}").create()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    async with store._reads() as session:
        for pragma, value in (("busy_timeout", 4000), ("foreign_keys", 1), ("synchronous", 1)):
            row = (await session.connection()).exec_driver_sql(f"PRAGMA {pragma}")
            assert (await row).scalar_one() == value, pragma
    await store.close()


async def test_a_store_that_could_not_be_opened_can_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def turn_to_wal(_engine: AsyncEngine) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    # Not by a file that can't be opened: the driver's thread can outlive the event loop of such a test.
    monkeypatch.setattr("outlive_service.store.turn_to_wal", turn_to_wal)
    store = Store(f"sqlite:///{tmp_path}/outlive.db")
    with pytest.raises(sqlite3.OperationalError, match="unable to open database file"):
        await store.create()
    await store.close()
