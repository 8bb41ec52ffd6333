"""Many who come at once pass a few at a time, in order, and nobody is lost on the way."""

import asyncio
from typing import Any

from fastapi import FastAPI, WebSocket
from starlette.types import Message

from outlive import Outlive
from outlive.turnstile import WIDTH, Turnstile

LEFT: Message = {"type": "websocket.disconnect", "code": 1001, "reason": ""}


def test_so_many_pass_at_each_turn_in_order(run_anywhere: Any) -> None:
    async def main() -> None:
        turnstile = Turnstile(asyncio.get_running_loop())
        passed: list[int] = []

        async def come(number: int) -> None:
            await turnstile.go_through()
            passed.append(number)

        coming = [asyncio.ensure_future(come(number)) for number in range(10 * WIDTH)]
        before = 0
        while len(passed) < len(coming):
            await asyncio.sleep(0)
            assert len(passed) - before <= WIDTH
            before = len(passed)
        assert passed == list(range(10 * WIDTH))

    run_anywhere(main())


def test_who_comes_alone_does_not_wait(run_anywhere: Any) -> None:
    async def main() -> None:
        turnstile = Turnstile(asyncio.get_running_loop())
        for _ in range(3):
            alone = turnstile.go_through()
            try:
                alone.send(None)
            except StopIteration:
                pass
            else:
                raise AssertionError("it waits")
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    run_anywhere(main())


def test_who_gives_up_takes_nobodys_place(run_anywhere: Any) -> None:
    async def main() -> None:
        turnstile = Turnstile(asyncio.get_running_loop())
        coming = [asyncio.ensure_future(turnstile.go_through()) for _ in range(4 * WIDTH)]
        await asyncio.sleep(0)
        for impatient in coming[WIDTH : 3 * WIDTH]:
            impatient.cancel()
        done = await asyncio.gather(*coming, return_exceptions=True)
        assert sum(isinstance(each, asyncio.CancelledError) for each in done) == 2 * WIDTH

    run_anywhere(main())


def test_handlers_whose_clients_go_at_once_clean_up_over_many_turns(
    run: Any, outlive: Outlive, wire: Any, serving: Any
) -> None:
    app = FastAPI()
    outlive.install(app)
    ended = 0

    @app.websocket("/rooms/{room}")
    async def room(ws: WebSocket) -> None:
        nonlocal ended
        await ws.accept()
        assert (await ws.receive())["type"] == "websocket.disconnect"
        ended += 1

    async def main() -> None:
        async with serving(outlive, app):
            wires = [wire(app, "websocket", f"/rooms/{number}") for number in range(10 * WIDTH)]
            for _ in range(50):
                await asyncio.sleep(0)
            for each in wires:
                each.put(LEFT)
            before = 0
            while ended < len(wires):
                await asyncio.sleep(0)
                # An eager handler may go on within the same turn that it is woken in.
                assert ended - before <= 2 * WIDTH
                before = ended
            await asyncio.gather(*(each.handler for each in wires))

    run(main())


def test_a_handler_that_is_cancelled_in_line_is_told_of_the_disconnect_all_the_same(
    run: Any, outlive: Outlive, wire: Any, serving: Any
) -> None:
    app = FastAPI()
    outlive.install(app)
    told: list[str] = []

    @app.websocket("/rooms/{room}")
    async def room(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.receive()
        except asyncio.CancelledError:
            told.append((await ws._receive())["type"])
        else:
            told.append("at once")

    async def main() -> None:
        async with serving(outlive, app):
            wires = [wire(app, "websocket", f"/rooms/{number}") for number in range(3 * WIDTH)]
            for _ in range(50):
                await asyncio.sleep(0)
            for each in wires:
                each.put(LEFT)
            while len(told) < WIDTH:  # noqa: ASYNC110 - turns are what is counted
                await asyncio.sleep(0)
            wires[-1].handler.cancel()
            await asyncio.gather(*(each.handler for each in wires))

    run(main())
    assert told.count("at once") == 3 * WIDTH - 1
    assert told.count("websocket.disconnect") == 1
