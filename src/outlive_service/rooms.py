"""Chat rooms over WebSockets, and what must happen when somebody leaves one.

Rooms live in the memory of one process: the users of a room must reach the same one.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated
from uuid import uuid4
from weakref import WeakValueDictionary

import anyio
import httpx
from fastapi import APIRouter, Path, Query, WebSocket, WebSocketDisconnect, status

from outlive import Outcome, Outlive, Run
from outlive_service.records import Transcript
from outlive_service.settings import Settings
from outlive_service.store import Store

MAX_LINE = 2_000
"""Characters of one line."""

CLOSE_TIMEOUT = 5.0
"""Seconds to hand the close frame to a client that may not be reading."""

Name = Annotated[str, Path(min_length=1, max_length=64)]
UserName = Annotated[str, Query(min_length=1, max_length=64)]


@dataclass(eq=False, slots=True)
class Member:
    """One session in a room, and the messages that wait for it."""

    transcript: Transcript
    messages: asyncio.Queue[str]
    drop: Callable[[], None]
    sending: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    @property
    def user(self) -> str:
        """Who it is."""
        return self.transcript.user

    def tell(self, message: str) -> None:
        """Queue a message. A member that can't keep up is closed, since it must not hold up the others."""
        try:
            self.messages.put_nowait(message)
        except asyncio.QueueFull:
            self.drop()


@dataclass(eq=False)
class Room:
    """Who is here, and whose departure isn't announced yet."""

    members: set[Member] = field(default_factory=set)
    # Weak: the runner holds a run until it has ended, so what has ended vanishes from here by itself.
    departures: WeakValueDictionary[str, Run[None]] = field(default_factory=WeakValueDictionary)

    @property
    def present(self) -> list[str]:
        """The users whose departure nobody has been told of."""
        leaving = {user for user, run in self.departures.items() if run.outcome is None}
        return sorted({member.user for member in self.members} | leaving)

    def has(self, user: str) -> bool:
        """Whether a session of the user is here."""
        return any(member.user == user for member in self.members)

    def broadcast(self, message: dict[str, object], *, but: Member | None = None) -> None:
        """Queue a message for everybody here, or all but one."""
        frame = json.dumps(message)
        for member in self.members:
            if member is not but:
                member.tell(frame)

    def enter(self, member: Member) -> None:
        """Welcome a member; tell the others unless the user was never missed."""
        departure = self.departures.pop(member.user, None)
        came_back = departure is not None and departure.cancel()
        known = came_back or self.has(member.user)
        self.members.add(member)
        member.tell(
            json.dumps({"type": "welcome", "session": member.transcript.session, "present": self.present})
        )
        if not known:
            self.broadcast({"type": "joined", "user": member.user}, but=member)

    def say(self, member: Member, text: str) -> None:
        """Write a line down and tell everybody."""
        transcript = member.transcript
        transcript.lines.append(text)
        self.broadcast(
            {
                "type": "line",
                "session": transcript.session,
                "user": transcript.user,
                "n": len(transcript.lines) - 1,
                "text": text,
            }
        )


async def converse(
    websocket: WebSocket, place: Room, transcript: Transcript, settings: Settings
) -> tuple[int, str]:
    """Talk until the session ends. Give the close code and reason to send, if the end is the server's."""
    async with anyio.create_task_group() as group:
        member = Member(transcript, asyncio.Queue(settings.room_queue), group.cancel_scope.cancel)
        place.enter(member)
        try:
            group.start_soon(send, websocket, member)
            ending = await listen(websocket, place, member, settings.room_max_lines)
            # Not the group's: a task that ends cancelled stays in a cycle with all that its connection holds, and
            # thousands of those stop everything while the garbage collector is at them.
            member.sending.cancel()
            return ending
        finally:
            place.members.discard(member)
    # Only reached when `tell` has cancelled the group.
    return status.WS_1013_TRY_AGAIN_LATER, "too slow for this room"


async def send(websocket: WebSocket, member: Member) -> None:
    """Send a member's messages until it is gone."""
    # That the client is gone is for `listen` to find.
    with member.sending, suppress(WebSocketDisconnect):
        while True:
            await websocket.send_text(await member.messages.get())


async def listen(websocket: WebSocket, place: Room, member: Member, max_lines: int) -> tuple[int, str]:
    """Receive a member's lines. Give what `converse` gives."""
    while (message := await websocket.receive())["type"] == "websocket.receive":
        text = message.get("text")
        if text is None:
            return status.WS_1003_UNSUPPORTED_DATA, "only text is a line"
        if len(text) > MAX_LINE:
            return status.WS_1009_MESSAGE_TOO_BIG, f"a line has at most {MAX_LINE} characters"
        if len(member.transcript.lines) == max_lines:
            return status.WS_1008_POLICY_VIOLATION, "a session has no more lines than this"
        place.say(member, text)
        # Lines that have already arrived are received without a pause, and the senders need their turn.
        await asyncio.sleep(0)
    return 0, ""


def rooms_router(outlive: Outlive, settings: Settings) -> APIRouter:
    """Build the route of the rooms and declare its tasks."""
    router = APIRouter()
    # Weak: a room is gone with its last member and its last departure.
    rooms: WeakValueDictionary[str, Room] = WeakValueDictionary()

    @outlive.task(
        timeout=settings.save_timeout, max_wait=settings.max_wait, max_running=settings.database_pool
    )
    async def save_transcript(store: Store, transcript: Transcript) -> None:
        await store.save_session(transcript)

    @outlive.task(
        timeout=settings.notify_timeout, max_wait=settings.max_wait, max_running=settings.partner_max_running
    )
    async def notify_partner(client: httpx.AsyncClient, transcript: Transcript) -> None:
        response = await client.post(
            f"{settings.partner_url}/notices",
            json={
                "session": transcript.session,
                "room": transcript.room,
                "user": transcript.user,
                "lines": len(transcript.lines),
            },
            headers={"Idempotency-Key": transcript.session},
        )
        response.raise_for_status()

    # The limit keeps those who only sleep from taking the slots of those who save.
    @outlive.task(
        timeout=settings.departure_grace + 1.0,
        max_wait=settings.max_wait,
        max_running=settings.departures_max_running,
    )
    async def announce_departure(room: Room, user: str, at: float) -> None:
        # Cancelled when the user comes back in time. The time in line has passed for the grace too.
        await asyncio.sleep(at - asyncio.get_running_loop().time())
        room.broadcast({"type": "left", "user": user})

    @router.websocket("/rooms/{room}")
    async def talk(websocket: WebSocket, room: Name, user: UserName) -> None:
        store: Store = websocket.app.state.store
        client: httpx.AsyncClient = websocket.app.state.client
        place = rooms.setdefault(room, Room())
        await websocket.accept()
        if len(place.members) >= settings.room_max_members:
            await websocket.close(status.WS_1013_TRY_AGAIN_LATER, "the room is full")
            return
        transcript = Transcript(uuid4().hex, room, user)
        try:
            code, reason = await converse(websocket, place, transcript, settings)
            if code:
                with suppress(WebSocketDisconnect), anyio.move_on_after(CLOSE_TIMEOUT):
                    await websocket.close(code, reason)
        finally:
            save_transcript.submit(store, transcript)
            notify_partner.submit(client, transcript)
            # Another session of theirs may be here: two windows, or a new one before the old was found lost.
            if not place.has(user):
                at = asyncio.get_running_loop().time() + settings.departure_grace
                departure = announce_departure.submit(place, user, at)
                if departure.outcome is Outcome.REJECTED:
                    place.broadcast({"type": "left", "user": user})
                else:
                    place.departures[user] = departure

    return router
