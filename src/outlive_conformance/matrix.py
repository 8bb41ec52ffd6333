"""What the matrix is made of, and the rules by which a cell means nothing or can't be promised."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from outlive_conformance.servers import SERVERS, TEST_CLIENT, UVICORN_WSPROTO, Server


class Handler(StrEnum):
    """A kind of connection, and what its handler does on it."""

    RECEIVES = "websocket that receives"
    SENDS = "websocket that only sends"
    BOTH = "websocket that does both"
    EVENTS = "server-sent events"
    STREAM = "streamed response"
    REQUEST = "plain request"
    BACKGROUND = "background task"

    @property
    def is_websocket(self) -> bool:
        """Whether a WebSocket carries it."""
        return self in (Handler.RECEIVES, Handler.SENDS, Handler.BOTH)

    @property
    def sends_on(self) -> bool:
        """Whether it goes on sending for as long as its client is there."""
        return self in (Handler.SENDS, Handler.BOTH, Handler.EVENTS, Handler.STREAM)


class End(StrEnum):
    """How a connection ends."""

    CLOSE_FRAME = "close frame"
    ABORT = "transport abort"
    HALF_OPEN = "half-open until a ping fails"
    STOPS_READING = "client stops reading"
    RAISES = "handler raises"
    RETURNS = "handler returns"
    NATIVE_CANCEL = "native cancel"
    ANYIO_CANCEL = "AnyIO cancel"
    STOP_BEFORE = "SIGTERM before"
    STOP_AT = "SIGTERM at the same time"
    STOP_AFTER = "SIGTERM after"
    STOP_BEFORE_GRACE = "SIGTERM before, grace"
    STOP_AT_GRACE = "SIGTERM at the same time, grace"
    STOP_AFTER_GRACE = "SIGTERM after, grace"
    WORKERS = "restart of workers"
    RELOAD = "reload"
    SECOND_SIGNAL = "second SIGTERM"

    @property
    def is_stop(self) -> bool:
        """Whether a server or a worker ends with the connection."""
        return self in STOPS

    @property
    def is_restart(self) -> bool:
        """Whether the server goes on, with other workers."""
        return self in (End.WORKERS, End.RELOAD)

    @property
    def has_grace(self) -> bool:
        """Whether the server runs with a graceful timeout."""
        return self in (End.STOP_BEFORE_GRACE, End.STOP_AT_GRACE, End.STOP_AFTER_GRACE)

    @property
    def is_the_handlers(self) -> bool:
        """Whether the handler ends while its client stays."""
        return self in (End.RAISES, End.RETURNS, End.NATIVE_CANCEL, End.ANYIO_CANCEL)


STOPS = tuple(End)[list(End).index(End.STOP_BEFORE) :]


class Way(StrEnum):
    """How the handler does the work after the disconnect."""

    PLAIN_AWAIT = "plain-await"
    ANYIO_SHIELD = "anyio-shield"
    ASYNCIO_SHIELD = "asyncio-shield"
    OUTLIVE = "outlive"
    """`task.submit(...)`; on a connection whose work follows the response, `after.add_task(task, ...)`."""
    AWAITED = "outlive-awaited"
    """`await task(...)`."""

    @property
    def is_outlives(self) -> bool:
        """Whether Outlive promises anything for it."""
        return self in (Way.OUTLIVE, Way.AWAITED)


def task_name(end: End, handler: Handler, way: Way) -> str:
    """The name of a cell's task, and what its path begins with."""
    return f"{end.name}-{handler.name}-{way.name}".lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Cell:
    """One connection of the matrix."""

    server: Server
    end: End
    handler: Handler
    way: Way

    @property
    def task(self) -> str:
        """The name of its task, and what its path begins with."""
        return task_name(self.end, self.handler, self.way)


@dataclass(frozen=True, slots=True)
class Group:
    """The cells that share one process of the server."""

    server: Server
    ends: tuple[End, ...]
    ways: tuple[Way, ...]

    @property
    def cells(self) -> list[Cell]:
        """Its cells, without those that mean nothing."""
        return [
            Cell(self.server, end, handler, way)
            for end in self.ends
            for handler in Handler
            for way in self.ways
            if means_something(self.server, end, handler, way)
        ]

    @property
    def is_outlives(self) -> bool:
        """Whether Outlive does its work."""
        return all(way.is_outlives for way in self.ways)


def means_something(server: Server, end: End, handler: Handler, way: Way) -> bool:
    """Tell whether there can be such a cell.

    - A close frame and an unanswered ping are WebSockets'; and not every server gives up a silent client.
    - Who doesn't send isn't held up by a client that doesn't read.
    - A test client reads a response to its end before it hands it out, and only leaves: it sends no signals.
    - Two servers with one HTTP stack need its cells only once.
    - What follows a response has nobody who could await it.
    - The server must have the option: a graceful timeout, workers that can be restarted, a reload.
    """
    if end in (End.CLOSE_FRAME, End.HALF_OPEN) and not handler.is_websocket:
        return False
    if end is End.STOPS_READING and not handler.sends_on:
        return False
    if handler is Handler.BACKGROUND and way is Way.AWAITED:
        return False
    if server is TEST_CLIENT:
        return end is End.CLOSE_FRAME
    if server is UVICORN_WSPROTO and not handler.is_websocket:
        return False
    needs = {
        End.HALF_OPEN: server.ping,
        End.WORKERS: server.workers,
        End.RELOAD: server.reload,
        **dict.fromkeys((End.STOP_BEFORE_GRACE, End.STOP_AT_GRACE, End.STOP_AFTER_GRACE), server.grace),
    }
    return bool(needs.get(end, True))


def impossible(server: Server, end: End) -> str | None:
    """Why nothing can be promised there, if that is so."""
    if end is End.SECOND_SIGNAL:
        return "a second signal asks the server to end at once, and it does"
    if end.is_stop and not server.lifespan:
        return f"{server.name} runs no lifespan, so nothing can make it wait"
    return None


def groups(
    servers: tuple[Server, ...] = (), ends: tuple[End, ...] = (), *, full: bool = True
) -> Iterator[Group]:
    """The groups of the matrix, or of a part of it.

    Parameters:
        servers, ends: only these; all by default.
        full: without it, every server and every end, but at a stop only Outlive's ways: the others need a process
            each there.
    """
    ours = tuple(way for way in Way if way.is_outlives)
    others = tuple(way for way in Way if not way.is_outlives)
    for server in servers or SERVERS:
        staying = tuple(end for end in ends or End if not end.is_stop)
        found = [Group(server, staying, others), Group(server, staying, ours)]
        for end in ends or End:
            if end.is_stop:
                # Each of the others in a process of its own: while a server waits for one, another could finish.
                found += [Group(server, (end,), (way,)) for way in others if full]
                found.append(Group(server, (end,), ours))
        yield from (group for group in found if group.cells)
