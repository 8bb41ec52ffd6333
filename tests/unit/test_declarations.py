"""What cannot work is refused where it is declared, with an error that says what to do."""

import asyncio
import functools
import math
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from outlive import DeclarationError, Outcome, Outlive, OutliveError, Task


async def work() -> None:
    pass


def test_a_sync_function_is_refused(outlive: Outlive) -> None:
    def save() -> None:
        pass

    declare: Any = outlive.task(timeout=1.0)
    with pytest.raises(DeclarationError, match=r"anyio\.to_thread\.run_sync") as caught:
        declare(save)

    assert isinstance(caught.value, OutliveError)
    assert "'save'" in str(caught.value)


class AsyncJob:
    async def __call__(self) -> None:
        pass


class SyncJob:
    def __call__(self) -> None:
        pass


async def stream() -> AsyncGenerator[int]:
    yield 1


@pytest.mark.parametrize(
    "function", [SyncJob(), AsyncJob, SyncJob, stream, lambda: None, functools.partial(print), print, None, 5]
)
def test_what_is_not_async_is_refused(outlive: Outlive, function: Any) -> None:
    with pytest.raises(DeclarationError, match=r"anyio\.to_thread\.run_sync"):
        outlive.task(timeout=1.0, name="job")(function)
    outlive.task(timeout=1.0, name="job")(work)


@pytest.mark.parametrize(
    "timeout", [0, -1, math.inf, math.nan, True, "5", None, pytest.param(10**400, id="huge")]
)
@pytest.mark.parametrize("which", ["timeout", "max_wait"])
def test_a_time_must_be_positive_and_finite(outlive: Outlive, which: str, timeout: Any) -> None:
    if which == "max_wait" and timeout is None:
        pytest.skip("None is the default")
    with pytest.raises(DeclarationError, match=f"task 'work': {which} must be a positive, finite number"):
        outlive.task(**{"timeout": 1.0, which: timeout})(work)


def test_the_timeout_is_required(outlive: Outlive) -> None:
    declare: Any = outlive.task
    with pytest.raises(TypeError, match="timeout"):
        declare()


@pytest.mark.parametrize(
    ("which", "limit"),
    [
        ("max_running", 0),
        ("max_running", 1.5),
        ("max_running", True),
        ("max_pending", -1),
        ("max_pending", "1"),
    ],
)
def test_a_limit_must_be_a_number_of_runs(outlive: Outlive, which: str, limit: Any) -> None:
    settings: dict[str, Any] = {which: limit}
    with pytest.raises(DeclarationError, match=f"task 'work': {which} must be a whole number"):
        outlive.task(timeout=1.0, **settings)(work)


@pytest.mark.parametrize("name", ["", "x" * 101, "two\nlines", 5])
def test_a_name_must_be_a_label(outlive: Outlive, name: Any) -> None:
    with pytest.raises(DeclarationError, match="name must be 1 to 100 printable characters"):
        outlive.task(timeout=1.0, name=name)(work)


def test_a_name_is_taken_once(outlive: Outlive) -> None:
    outlive.task(timeout=1.0)(work)
    with pytest.raises(DeclarationError, match="two tasks are named 'work'"):
        outlive.task(timeout=1.0)(work)
    with pytest.raises(DeclarationError, match="two tasks are named 'work'"):
        outlive.scope("work", timeout=1.0)


def test_an_unknown_trace_mode(outlive: Outlive) -> None:
    mode: Any = "sibling"
    with pytest.raises(DeclarationError, match="trace must be 'auto', 'child' or 'link'"):
        outlive.task(timeout=1.0, trace=mode)(work)


@pytest.mark.parametrize(
    "settings",
    [
        {"drain_timeout": 0},
        {"drain_timeout": math.inf},
        {"cancel_grace": -1},
        {"cancel_grace": math.nan},
        {"drain_timeout": 1.0, "cancel_grace": 1.0},
        {"drain_timeout": 2.0, "cancel_grace": 1.9},
    ],
)
def test_a_budget_that_leaves_no_time(watched: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match=r"drain_timeout|cancel_grace"):
        watched(**settings)


def test_a_task_looks_like_its_function(outlive: Outlive) -> None:
    @outlive.task(timeout=1.5)
    async def save(line: str) -> None:
        """Save a line."""

    assert save.__name__ == "save"
    assert save.__doc__ == "Save a line."
    assert save.name == "save"
    assert repr(save) == "<Task 'save' timeout=1.5s>"


def test_a_callable_objects_attributes_are_not_the_tasks(run: Any, serving: Any, outlive: Outlive) -> None:
    class Saver:
        def __init__(self) -> None:
            self.details = "of the saver"
            self.running = 1_000
            self.waiting = None

        async def __call__(self) -> str:
            return self.details

    save: Task[[], str] = outlive.task(timeout=1.0, name="save", max_running=1)(Saver())

    async def main() -> None:
        async with serving(outlive):
            assert save.name == "save"
            assert await save() == "of the saver"

    run(main())


def test_a_task_of_another_outlive_may_be_declared_again(run: Any, serving: Any, watched: Any) -> None:
    mine: Outlive = watched()
    theirs: Outlive = watched()
    first = theirs.task(timeout=1.0, name="first")(work)
    second = mine.task(timeout=2.0, name="second")(first)

    async def main() -> None:
        async with serving(mine), serving(theirs):
            assert second.name == "second"
            await second()

    run(main())
    assert mine.counts.outcomes[Outcome.COMPLETED] == theirs.counts.outcomes[Outcome.COMPLETED] == 1


def test_methods_and_partials_can_be_tasks(run: Any, serving: Any, outlive: Outlive) -> None:
    class Store:
        async def save(self, line: str) -> str:
            await asyncio.sleep(0)
            return line

    method = outlive.task(timeout=1.0)(Store().save)
    partial = outlive.task(timeout=1.0, name="partial")(functools.partial(Store().save, "half"))

    async def main() -> None:
        async with serving(outlive):
            assert await method("line") == "line"
            assert await partial() == "half"

    run(main())
