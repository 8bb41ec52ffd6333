"""A scope shields a block in place, and counts it as a run."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest

from outlive import DeclarationError, Outcome, Outlive, Rejection, RunCancelled, RunRejected, RunTimedOut


def counted(outlive: Outlive, outcome: Outcome) -> bool:
    counts = outlive.counts
    return (
        counts.outcomes[outcome] == sum(counts.outcomes.values()) == counts.submitted == 1
        and counts.running == 0
    )


def absorbed(registry: Any, name: str = "flush") -> float | None:
    value: float | None = registry.get_sample_value("outlive_absorbed_cancellations_total", {"task": name})
    return value


def test_completed(run: Any, serving: Any, outlive: Outlive) -> None:
    async def main() -> None:
        async with serving(outlive), outlive.scope("flush", timeout=5.0):
            await asyncio.sleep(1)
            assert outlive.counts.running == 1

    run(main())
    assert counted(outlive, Outcome.COMPLETED)


def test_its_deadline(run: Any, serving: Any, outlive: Outlive) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving(outlive):
            started = loop.time()
            with pytest.raises(RunTimedOut, match="task 'flush': timed out after 5 s"):
                async with outlive.scope("flush", timeout=5.0):
                    await asyncio.sleep(100)
            assert loop.time() == pytest.approx(started + 5)
            await asyncio.sleep(1)  # nothing of the cancellation is left over

    run(main())
    assert counted(outlive, Outcome.TIMED_OUT)


def test_its_failure(run: Any, serving: Any, outlive: Outlive) -> None:
    async def main() -> None:
        async with serving(outlive):
            with pytest.raises(ZeroDivisionError):
                async with outlive.scope("flush", timeout=5.0):
                    raise ZeroDivisionError

    run(main())
    assert counted(outlive, Outcome.FAILED)


def test_an_anyio_cancellation_around_it_is_absorbed(
    run: Any, serving: Any, outlive: Outlive, registry: Any
) -> None:
    done = []

    async def main() -> None:
        async with serving(outlive):
            with anyio.move_on_after(1) as around:
                async with outlive.scope("flush", timeout=5.0):
                    await asyncio.sleep(2)
                    done.append("flushed")
                await asyncio.sleep(0)
                done.append("never")
            assert around.cancelled_caught

    run(main())
    assert done == ["flushed"]
    assert counted(outlive, Outcome.COMPLETED)
    assert absorbed(registry) == 1


def test_it_works_in_the_clean_up_of_cancelled_code(
    run: Any, serving: Any, outlive: Outlive, registry: Any
) -> None:
    done = []

    async def main() -> None:
        async with serving(outlive):
            with anyio.move_on_after(1):
                try:
                    await asyncio.sleep(100)
                finally:
                    async with outlive.scope("flush", timeout=5.0):
                        await asyncio.sleep(2)
                        done.append("flushed")

    run(main())
    assert done == ["flushed"]
    assert absorbed(registry) == 1


def test_without_a_cancellation_none_is_absorbed(
    run: Any, serving: Any, outlive: Outlive, registry: Any
) -> None:
    async def main() -> None:
        async with serving(outlive):
            with anyio.move_on_after(100):
                async with outlive.scope("flush", timeout=5.0):
                    await asyncio.sleep(2)
            with pytest.raises(RunTimedOut):
                async with outlive.scope("flush", timeout=5.0):
                    await asyncio.sleep(100)

    run(main())
    assert absorbed(registry) == 0


def test_a_nested_scope_absorbs_nothing_that_its_outer_one_does(
    run: Any, serving: Any, outlive: Outlive, registry: Any
) -> None:
    async def main() -> None:
        async with serving(outlive):
            with anyio.move_on_after(1):
                async with outlive.scope("outer", timeout=9.0), outlive.scope("inner", timeout=5.0):
                    await asyncio.sleep(2)

    run(main())
    assert (absorbed(registry, "outer"), absorbed(registry, "inner")) == (1, 0)


def test_a_native_cancellation_pierces_it(run: Any, serving: Any, outlive: Outlive, registry: Any) -> None:
    async def handler() -> None:
        async with outlive.scope("flush", timeout=5.0):
            await asyncio.sleep(2)

    async def main() -> None:
        async with serving(outlive):
            task = asyncio.create_task(handler())
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()

    run(main())
    assert counted(outlive, Outcome.CANCELLED)
    assert absorbed(registry) == 0


def test_a_native_cancellation_at_the_deadline_is_not_lost(run: Any, serving: Any, outlive: Outlive) -> None:
    async def handler() -> None:
        async with outlive.scope("flush", timeout=1.0):
            await asyncio.sleep(100)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving(outlive):
            task = asyncio.create_task(handler())
            await asyncio.sleep(0)
            loop.call_at(loop.time() + 1.0, task.cancel)
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())
    assert sum(outlive.counts.outcomes.values()) == 1


def test_a_block_that_swallows_its_deadline(run: Any, serving: Any, outlive: Outlive) -> None:
    async def swallow() -> None:
        async with outlive.scope("flush", timeout=1.0):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(100)

    async def main() -> None:
        async with serving(outlive):
            with pytest.raises(RunTimedOut):
                await swallow()

    run(main())
    assert counted(outlive, Outcome.TIMED_OUT)


def test_rejected_at_entry(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(max_running=1)
    executed = []

    async def main() -> None:
        with pytest.raises(RunRejected) as closed:
            async with outlive.scope("flush", timeout=5.0):
                executed.append("closed")
        async with serving(outlive):
            async with outlive.scope("hold", timeout=5.0):
                with pytest.raises(RunRejected) as full:
                    async with outlive.scope("flush", timeout=5.0):
                        executed.append("full")
            async with outlive.scope("flush", timeout=5.0):
                executed.append("free")
        assert (closed.value.reason, full.value.reason) == (Rejection.CLOSED, Rejection.FULL)

    run(main())
    assert executed == ["free"]
    assert outlive.counts.outcomes[Outcome.REJECTED] == 2
    assert outlive.counts.running == 0


def test_a_drain_waits_for_it_and_then_cancels_it(run: Any, serving: Any, watched: Any) -> None:
    outlive: Outlive = watched(drain_timeout=10.0, cancel_grace=1.0)

    async def flush(seconds: float) -> None:
        async with outlive.scope("flush", timeout=50.0):
            await asyncio.sleep(seconds)

    async def main() -> None:
        async with serving(outlive):
            finishes, too_long = asyncio.create_task(flush(5)), asyncio.create_task(flush(40))
            await asyncio.sleep(0)
        await finishes
        with pytest.raises(RunCancelled):
            await too_long

    run(main())
    assert outlive.counts.outcomes[Outcome.COMPLETED] == outlive.counts.outcomes[Outcome.CANCELLED] == 1


def test_in_the_clean_up_of_an_async_generator(run: Any, serving: Any, outlive: Outlive) -> None:
    saved = []

    async def tokens() -> AsyncGenerator[int]:
        sent = 0
        try:
            while True:
                await asyncio.sleep(1)
                sent += 1
                yield sent
        finally:
            async with outlive.scope("save", timeout=5.0):
                await asyncio.sleep(1)
                saved.append(sent)

    async def main() -> None:
        async with serving(outlive):
            # The consumer is cancelled inside the generator, closes it, or just forgets it.
            with anyio.move_on_after(2.5):
                async for _ in tokens():
                    pass
            closed = tokens()
            await anext(closed)
            await closed.aclose()
            forgotten = tokens()
            await anext(forgotten)
            del forgotten
            await asyncio.sleep(3)

    run(main())
    assert saved == [2, 1, 1]
    assert outlive.counts.outcomes[Outcome.COMPLETED] == 3


def test_an_async_generator_inside_it_that_another_task_closes(
    run: Any, serving: Any, outlive: Outlive
) -> None:
    async def tokens() -> AsyncGenerator[int]:
        async with outlive.scope("stream", timeout=5.0):
            yield 1
            yield 2

    async def main() -> None:
        async with serving(outlive):
            stream = tokens()
            await anext(stream)
            # AnyIO refuses such a use of its scopes; the run must end all the same.
            with pytest.raises(RuntimeError):
                await asyncio.create_task(stream.aclose())
            assert outlive.counts.running == 0

    try:
        run(main())
    finally:
        assert sum(outlive.counts.outcomes.values()) == 1


def test_a_name_has_one_timeout(outlive: Outlive) -> None:
    outlive.scope("flush", timeout=5.0)
    outlive.scope("flush", timeout=5.0)
    with pytest.raises(DeclarationError, match="has a timeout of 5 s elsewhere, not 6 s"):
        outlive.scope("flush", timeout=6.0)


def test_names_made_from_data_come_to_an_end(outlive: Outlive) -> None:
    for number in range(1_000):
        outlive.scope(f"user {number}", timeout=1.0)
    with pytest.raises(DeclarationError, match="name scopes in code, not from data"):
        outlive.scope("user 1000", timeout=1.0)
