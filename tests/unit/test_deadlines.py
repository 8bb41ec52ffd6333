"""Many deadlines on one timer."""

import asyncio
from typing import Any

import pytest

from outlive.deadlines import Deadlines


class Watched:
    """Deadlines of two seconds, and when each passed."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.passed: list[tuple[str, float]] = []
        self.deadlines = Deadlines[str](2.0, self.note)

    def note(self, name: str) -> None:
        assert name not in self.deadlines
        self.passed.append((name, round(self.loop.time() - self.began, 3)))

    def start(self, *names: str) -> None:
        for name in names:
            self.deadlines.add(name, self.loop.time(), self.loop)


def test_each_passes_at_its_time(run: Any) -> None:
    async def main() -> None:
        watched = Watched()
        watched.start("a")
        await asyncio.sleep(0.5)
        watched.start("b", "c")
        await asyncio.sleep(5)
        watched.start("d")
        await asyncio.sleep(5)
        assert watched.passed == [("a", 2.0), ("b", 2.5), ("c", 2.5), ("d", 7.5)]

    run(main())


def test_those_that_are_removed_dont(run: Any) -> None:
    async def main() -> None:
        watched = Watched()
        watched.start("a", "b")
        await asyncio.sleep(1)
        watched.start("c", "d")
        watched.deadlines.remove("a")
        watched.deadlines.remove("c")
        watched.deadlines.remove("never there")
        await asyncio.sleep(5)
        assert watched.passed == [("b", 2.0), ("d", 3.0)]

    run(main())


def test_the_timer_of_one_that_left_serves_the_next(run: Any) -> None:
    async def main() -> None:
        watched = Watched()
        watched.start("a")
        await asyncio.sleep(1)
        watched.deadlines.remove("a")
        watched.start("b")
        await asyncio.sleep(5)
        assert watched.passed == [("b", 3.0)]

    run(main())


def test_what_is_added_while_one_passes_has_its_whole_time(run: Any) -> None:
    async def main() -> None:
        watched = Watched()
        note = watched.note

        def note_and_add(name: str) -> None:
            note(name)
            if name == "a":
                watched.start("later")

        watched.deadlines = Deadlines[str](2.0, note_and_add)
        watched.start("a", "b")
        await asyncio.sleep(1)
        watched.start("c")
        await asyncio.sleep(10)
        assert watched.passed == [("a", 2.0), ("b", 2.0), ("c", 3.0), ("later", 4.0)]

    run(main())


def test_one_that_raises_holds_up_none(run: Any) -> None:
    async def main() -> None:
        watched = Watched()
        note = watched.note

        def raise_at_first(name: str) -> None:
            note(name)
            if name == "a":
                raise ZeroDivisionError

        watched.deadlines = Deadlines[str](2.0, raise_at_first)
        told: list[BaseException] = []
        watched.loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))
        watched.start("a", "b")
        await asyncio.sleep(3)
        assert watched.passed == [("a", 2.0), ("b", 2.0)]
        assert [type(error) for error in told] == [ZeroDivisionError]

    run(main())


def test_an_event_loop_that_calls_back_too_early_is_believed(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        watched = Watched()
        call_at = watched.loop.call_at
        calls: list[float] = []

        def early(when: float, *call: Any, **context: Any) -> asyncio.TimerHandle:
            calls.append(when)
            return call_at(when - 0.0005, *call, **context)

        monkeypatch.setattr(watched.loop, "call_at", early)
        watched.start("a")
        await asyncio.sleep(3)
        assert [name for name, _ in watched.passed] == ["a"]
        assert len(calls) == 2  # of which one is the sleep's

    run(main())


def test_stopped_ones_leave_nothing_on_the_loop(run: Any) -> None:
    async def main() -> None:
        watched = Watched()
        watched.start("a")
        watched.deadlines.stop()
        watched.deadlines.stop()
        await asyncio.sleep(5)
        assert watched.passed == []

    run(main())
