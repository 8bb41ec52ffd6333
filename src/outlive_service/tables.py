"""The tables of the database, and which strings they take."""

from datetime import UTC, datetime

from sqlalchemy import DateTime, Dialect, Enum, ForeignKey, Index, String, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outlive_service.records import Bill


def storable(value: str) -> str:
    """Make any Python string one that both databases take.

    PostgreSQL refuses NUL, and no database takes half a surrogate pair. A pair that was split between two
    tokens is joined; what stays wrong becomes U+FFFD, since one odd character must not cost the whole text.
    """
    joined = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return joined.replace("\0", "\N{REPLACEMENT CHARACTER}")


class UTCDateTime(TypeDecorator[datetime]):
    """A moment in UTC: SQLite forgets the zone of what it stores."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002 - SQLAlchemy hands it over
    ) -> datetime | None:
        """Give the zone back."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Base(DeclarativeBase):
    """The tables."""

    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy, which names its type
        datetime: UTCDateTime,
        Bill: Enum(Bill, native_enum=False, length=16, values_callable=list),
    }


class SessionRow(Base):
    """One WebSocket connection to a room."""

    __tablename__ = "sessions"
    __table_args__ = (Index("sessions_of_user", "user", "id"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    room: Mapped[str] = mapped_column(String(64))
    user: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime]


class LineRow(Base):
    """One line that a session said."""

    __tablename__ = "lines"

    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(Text)


class AnswerRow(Base):
    """One completion, whole or cut short."""

    __tablename__ = "answers"
    __table_args__ = (Index("answers_of_user", "user", "id"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user: Mapped[str] = mapped_column(String(64))
    text: Mapped[str] = mapped_column(Text)
    tokens: Mapped[int]
    finished: Mapped[bool]
    bill: Mapped[Bill]
    started_at: Mapped[datetime]


class ExportRow(Base):
    """The lease of one export, open until `released_at` is set."""

    __tablename__ = "exports"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[datetime]
    rows_sent: Mapped[int]
    released_at: Mapped[datetime | None]
