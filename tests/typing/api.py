"""The public API as a type checker sees it. Nothing here is run: tests/typing/test_api.py has mypy read it."""

from collections.abc import Coroutine
from typing import Any, assert_type

from fastapi import FastAPI, WebSocket

from outlive import AfterDisconnect, Counts, Observer, Outcome, Outlive, Run, State, Task, TaskDetails

outlive = Outlive(drain_timeout=20.0, max_running=1_000, max_pending=10_000)
app = FastAPI()
assert_type(outlive.install(app), None)
assert_type(outlive.state, State)
assert_type(outlive.counts, Counts)


@outlive.task(timeout=5.0)
async def count(room: str, *, lines: list[str]) -> int:
    return len(lines)


@outlive.task(timeout=5.0, name="other", max_wait=1.0, max_running=2, max_pending=3, trace="link")
async def save(room: str) -> None: ...


class Transcripts:
    """Tasks declared on an object, as a module without globals does it."""

    def __init__(self, outlive: Outlive) -> None:
        self.save = outlive.task(timeout=5.0)(self._save)

    async def _save(self, room: str) -> bytes:
        return room.encode()


async def use() -> None:
    assert_type(count.submit("a", lines=[]), Run[int])
    assert_type(await count("a", lines=[]), int)
    waiting: Coroutine[Any, Any, int] = count("a", lines=[])
    assert_type(await waiting, int)
    run = count.submit("a", lines=[])
    assert_type(await run, int)
    assert_type(run.outcome, Outcome | None)
    assert_type(run.cancel(), bool)
    assert_type(run.name, str)
    assert_type(save.submit("a"), Run[None])
    assert_type(await Transcripts(outlive).save("a"), bytes)
    async with outlive.scope("flush", timeout=2.0) as nothing:
        assert_type(nothing, None)

    count.submit()  # type: ignore[call-arg]
    count.submit(1, lines=[])  # type: ignore[arg-type]
    count.submit("a", lines=[], more=1)  # type: ignore[call-arg]
    await count("a", [])  # type: ignore[call-arg]
    await save("a", "b")  # type: ignore[call-arg]


@app.websocket("/rooms/{room}")
async def room(ws: WebSocket, room: str, after: AfterDisconnect) -> None:
    assert_type(after.add_task(save, room), None)
    after.add_task(count, room, lines=[])
    after.add_task(save)  # type: ignore[call-arg]
    after.add_task(save, 1)  # type: ignore[arg-type]
    after.add_task(print, "a")  # type: ignore[arg-type]


class Mine(Observer):
    """An observer of one's own overrides what it needs."""

    def task_declared(self, task: TaskDetails) -> None:
        assert_type(task.timeout, float)


Outlive(observers=[Mine()])
some: Task[[str], None] = save
outlive.task()  # type: ignore[call-arg]
outlive.task(timeout=None)  # type: ignore[arg-type]
outlive.task(timeout=1.0, trace="own")  # type: ignore[arg-type]
outlive.task(timeout=1.0)(print)  # type: ignore[arg-type]
