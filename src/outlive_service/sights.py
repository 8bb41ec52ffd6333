"""What the clients of the traffic have seen."""

from dataclasses import dataclass
from typing import Literal

Ending = Literal["closed", "aborted", "given_up", "server"]
"""Who ended a connection to a room, and how: the client by a close frame, the client by dropping the
transport, the server because the client had fallen silent, or the server for a reason of its own."""


@dataclass(frozen=True, slots=True)
class RoomVisit:
    """What a client saw of one connection to a room; a line is acknowledged when its own echo came back."""

    session: str
    room: str
    user: str
    sent: int
    acknowledged: int
    ending: Ending


@dataclass(frozen=True, slots=True)
class CompletionVisit:
    """What a client saw of one answer; `done` if its last event came."""

    id: str
    tokens_received: int
    done: bool


@dataclass(frozen=True, slots=True)
class ExportVisit:
    """What a client saw of one report: lines after the heading; `done` if its end came."""

    id: str
    rows_received: int
    done: bool


Sight = RoomVisit | CompletionVisit | ExportVisit
