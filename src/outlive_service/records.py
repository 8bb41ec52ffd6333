"""What goes into the database, and what comes out of it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum


class Bill(StrEnum):
    """Whether the tokens of an answer have been paid for."""

    DUE = "due"
    CHARGED = "charged"


def now() -> datetime:
    """The present moment, in UTC."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Transcript:
    """What one session said in a room."""

    session: str
    room: str
    user: str
    lines: list[str] = field(default_factory=list)
    started_at: datetime = field(default_factory=now)


@dataclass(slots=True)
class Answer:
    """What the upstream has answered so far."""

    id: str
    user: str
    tokens: list[str] = field(default_factory=list)
    finished: bool = False
    started_at: datetime = field(default_factory=now)


@dataclass(frozen=True, slots=True)
class SavedSession:
    """A session as the database has it; `lines` is their number."""

    id: str
    room: str
    user: str
    lines: int


@dataclass(frozen=True, slots=True)
class SavedAnswer:
    """An answer as the database has it; `tokens` is their number."""

    id: str
    user: str
    text: str
    tokens: int
    finished: bool
    bill: Bill

    @property
    def text_tokens(self) -> int:
        """How many words the text has: the partner's tokens are one word each."""
        return len(self.text.split())


@dataclass(frozen=True, slots=True)
class SavedExport:
    """An export as the database has it."""

    id: str
    user: str
    rows_sent: int
    released_at: datetime | None


@dataclass(frozen=True, slots=True)
class UsedLine:
    """One line in a usage report: its size, not its text."""

    session: str
    n: int
    characters: int
    at: datetime


@dataclass(frozen=True, slots=True)
class UsedAnswer:
    """One answer in a usage report: its size, not its text."""

    id: str
    tokens: int
    finished: bool
    bill: Bill
    at: datetime
