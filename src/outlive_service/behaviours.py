"""The ways in which clients come, talk and vanish."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping

from outlive_service.visits import Visit

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


async def _room_polite(visit: Visit) -> None:
    async with visit.sit_down(visit.room()) as seat:
        await seat.talk()
        await seat.hear(2.0, until_acknowledged=True)
        await seat.close()


async def _room_abort(visit: Visit) -> None:
    async with visit.sit_down(visit.room()) as seat:
        await seat.talk()
        # The last word and the end of the transport reach the server together.
        await seat.say(visit.line(5))
        seat.abort()


async def _room_half_open(visit: Visit) -> None:
    async with visit.sit_down(visit.room()) as seat:
        await seat.talk()
        await seat.fall_silent(visit.traffic.half_open)


async def _room_reconnect(visit: Visit) -> None:
    room, polite = visit.room(), visit.choices.random() < 0.5
    async with visit.sit_down(room) as seat:
        await seat.talk()
        if polite:
            await seat.close()
    # Not scaled by the pace: what counts is the server's grace.
    await asyncio.sleep(visit.choices.uniform(0.2, 0.8) * visit.traffic.return_within)
    async with visit.sit_down(room) as seat:
        await seat.talk()
        await seat.close()


async def _room_slow_reader(visit: Visit) -> None:
    async with visit.sit_down(visit.room(), max_queue=1) as seat:
        lines = visit.choices.randint(3, 10)
        for _ in range(lines):
            await seat.say(visit.line(500))
        for _ in range(lines):
            await asyncio.sleep(visit.pause(0.05, 0.5))
            await seat.hear_one()
        await seat.close()


async def _completion_full(visit: Visit) -> None:
    async with visit.ask(visit.choices.randint(8, 48)) as (_, tokens):
        async for _ in tokens:
            pass


async def _completion_leave(visit: Visit) -> None:
    max_tokens = visit.choices.randint(16, 64)
    leave_after = visit.choices.randint(1, max_tokens // 2)
    reset = visit.choices.random() < 0.5
    async with visit.ask(max_tokens) as (response, tokens):
        async for count in tokens:
            if count == leave_after:
                break
        if reset:
            sock = response.extensions["network_stream"].get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


async def _export_full(visit: Visit) -> None:
    await visit.export()


async def _export_leave(visit: Visit) -> None:
    # Early: a short report would be over before its reader left.
    await visit.export(leave_after=visit.choices.randint(0, 3))


async def _export_slow_reader(visit: Visit) -> None:
    # It leaves at some line, since a long report at this speed would have no end.
    await visit.export(
        leave_after=visit.choices.randint(10, 100), small_buffer=True, rest=visit.pause(0.005, 0.05)
    )


BEHAVIOURS: Mapping[str, Callable[[Visit], Awaitable[None]]] = {
    "room-polite": _room_polite,
    "room-abort": _room_abort,
    "room-half-open": _room_half_open,
    "room-reconnect": _room_reconnect,
    "room-slow-reader": _room_slow_reader,
    "completion-full": _completion_full,
    "completion-leave": _completion_leave,
    "export-full": _export_full,
    "export-leave": _export_leave,
    "export-slow-reader": _export_slow_reader,
}
"""What a visit can be, by name."""

WEIGHTS: Mapping[str, float] = {
    "room-polite": 4,
    "room-abort": 4,
    "room-half-open": 1,
    "room-reconnect": 3,
    "room-slow-reader": 1,
    "completion-full": 3,
    "completion-leave": 5,
    "export-full": 1,
    "export-leave": 2,
    "export-slow-reader": 1,
}
"""How often each behaviour is chosen, relative to the others, unless told otherwise."""
