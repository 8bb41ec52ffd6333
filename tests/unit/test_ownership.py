"""Promise 1: a run belongs to the runner, and what happens to its caller doesn't happen to it."""

import asyncio
import gc
from typing import Any

import anyio
import pytest

from outlive import Outcome, Outlive, Task


class Store:
    def __init__(self, outlive: Outlive) -> None:
        self.saved: list[str] = []
        self.save: Task[[str], str] = outlive.task(timeout=10.0)(self._save)

    async def _save(self, what: str) -> str:
        await asyncio.sleep(1)
        self.saved.append(what)
        return what


@pytest.fixture
def store(outlive: Outlive) -> Store:
    return Store(outlive)


def completed(outlive: Outlive) -> int:
    return outlive.counts.outcomes[Outcome.COMPLETED]


def test_survives_the_cancelled_scope_of_its_caller(
    run: Any, serving: Any, outlive: Outlive, store: Store
) -> None:
    async def main() -> None:
        async with serving(outlive):
            async with anyio.create_task_group() as group:
                group.start_soon(store.save, "line")
                await asyncio.sleep(0.5)
                group.cancel_scope.cancel()
            assert store.saved == []
        assert store.saved == ["line"]

    run(main())
    assert completed(outlive) == 1


def test_survives_the_timeout_of_its_caller(run: Any, serving: Any, outlive: Outlive, store: Store) -> None:
    async def main() -> None:
        async with serving(outlive):
            with anyio.move_on_after(0.5) as scope:
                await store.save("anyio")
            assert scope.cancelled_caught
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await store.save("asyncio")
        assert store.saved == ["anyio", "asyncio"]

    run(main())


def test_survives_the_native_cancellation_of_its_caller(
    run: Any, serving: Any, outlive: Outlive, store: Store
) -> None:
    async def main() -> None:
        async with serving(outlive):
            caller = asyncio.create_task(store.save("line"))
            await asyncio.sleep(0.5)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
        assert store.saved == ["line"]

    run(main())


def test_survives_a_native_and_an_anyio_cancellation_at_once(
    run: Any, serving: Any, outlive: Outlive, store: Store
) -> None:
    async def handler(scope: anyio.CancelScope) -> None:
        with scope:
            await store.save("line")

    async def main() -> None:
        scope = anyio.CancelScope()
        async with serving(outlive):
            caller = asyncio.create_task(handler(scope))
            await asyncio.sleep(0.5)
            scope.cancel()
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
        assert store.saved == ["line"]

    run(main())


def test_survives_a_caller_that_is_cancelled_again_and_again(
    run: Any, serving: Any, outlive: Outlive, store: Store
) -> None:
    async def stubborn() -> str:
        handle = store.save.submit("line")
        while True:
            try:
                return await handle
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        async with serving(outlive):
            caller = asyncio.create_task(stubborn())
            for _ in range(9):
                await asyncio.sleep(0.1)
                caller.cancel()
            assert await caller == "line"

    run(main())
    assert store.saved == ["line"]


def test_is_submitted_by_code_that_is_being_cancelled(
    run: Any, serving: Any, outlive: Outlive, store: Store
) -> None:
    async def handler() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            store.save.submit("last words")

    async def main() -> None:
        async with serving(outlive), anyio.create_task_group() as group:
            group.start_soon(handler)
            await asyncio.sleep(0.1)
            group.cancel_scope.cancel()
        assert store.saved == ["last words"]

    run(main())


def test_is_not_waited_for_by_the_task_group_of_its_caller(
    run: Any, serving: Any, outlive: Outlive, store: Store
) -> None:
    async def handler() -> None:
        store.save.submit("line")

    async def main() -> None:
        async with serving(outlive):
            async with asyncio.TaskGroup() as group:
                group.create_task(handler())
            assert store.saved == []
            assert outlive.counts.running == 1
        assert store.saved == ["line"]

    run(main())


def test_outlives_the_failure_of_its_callers_task_group(
    run: Any, serving: Any, outlive: Outlive, store: Store
) -> None:
    async def broken() -> None:
        await asyncio.sleep(0.1)
        raise ZeroDivisionError

    async def handler() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(store.save("line"))
            group.create_task(broken())

    async def main() -> None:
        async with serving(outlive):
            with pytest.raises(ExceptionGroup):
                await handler()
            assert outlive.counts.running == 1
        assert store.saved == ["line"]

    run(main())


def test_is_never_garbage(run: Any, serving: Any, outlive: Outlive) -> None:
    ended = []

    @outlive.task(timeout=10.0)
    async def wait_on_nothing_that_others_hold() -> None:
        try:
            # The future is referenced by this frame alone: without an owner, all of it is one cycle of garbage.
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(asyncio.get_running_loop().time())

    async def main() -> None:
        async with serving(outlive):
            started = asyncio.get_running_loop().time()
            wait_on_nothing_that_others_hold.submit()
            await asyncio.sleep(0)
            gc.collect()
            await asyncio.sleep(5)
            gc.collect()
            assert ended == []
            assert outlive.counts.running == 1
            await asyncio.sleep(6)
            assert ended == [pytest.approx(started + 10)]

    run(main())


def test_its_end_frees_its_arguments_and_its_result(run: Any, serving: Any, outlive: Outlive) -> None:
    class Payload:
        pass

    @outlive.task(timeout=10.0)
    async def pass_on(payload: Payload) -> Payload:
        await asyncio.sleep(1)
        return payload

    def payloads() -> int:
        gc.collect()
        return sum(isinstance(thing, Payload) for thing in gc.get_objects())

    async def main() -> None:
        async with serving(outlive):
            handle = pass_on.submit(Payload())
            assert payloads() == 1
            assert isinstance(await handle, Payload)
            del handle
            await asyncio.sleep(0)
            assert payloads() == 0

    run(main())
