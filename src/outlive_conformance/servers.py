"""The servers of the matrix: how each is started, and what it can do."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from signal import SIGHUP, Signals

APPLICATION = "outlive_conformance.served:app"
PING_TIMEOUT = "4"
"""Seconds; clients of a busy machine take their time to answer."""
GRACE = 1
"""Whole seconds of a graceful timeout, where a server has one; uvicorn takes no fractions."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server with one set of options.

    Parameters:
        modules: what must be installed for it.
        command: its arguments after `python -m`, for a port.
        grace: the further arguments for a graceful timeout of `GRACE` seconds.
        ping: whether it gives up a WebSocket client that answers no ping (the command asks for it).
        workers: the further arguments for two workers, and the signal that makes it restart them.
        reload: the further arguments for a reload when a file in this folder changes.
        lifespan: whether it runs ASGI's lifespan.
    """

    name: str
    modules: tuple[str, ...]
    command: Callable[[int], Sequence[str]]
    grace: tuple[str, ...] = ()
    ping: bool = False
    workers: tuple[tuple[str, ...], Signals] | None = None
    reload: Callable[[str], Sequence[str]] | None = None
    lifespan: bool = True

    @property
    def missing(self) -> tuple[str, ...]:
        """What of it isn't installed."""
        return tuple(module for module in self.modules if find_spec(module) is None)

    def __str__(self) -> str:
        return self.name


def _uvicorn(name: str, http: str, websockets: str, module: str) -> Server:
    def command(port: int) -> Sequence[str]:
        return (
            "uvicorn", APPLICATION, "--port", str(port), "--http", http, "--ws", websockets, "--no-access-log",
            "--ws-ping-interval", "1", "--ws-ping-timeout", PING_TIMEOUT,
        )  # fmt: skip

    return Server(
        name,
        ("uvicorn", http, module),
        command,
        grace=("--timeout-graceful-shutdown", str(GRACE)),
        ping=True,
        workers=(("--workers", "2"), SIGHUP),
        reload=lambda folder: ("--reload", "--reload-dir", folder),
    )


UVICORN = _uvicorn("uvicorn websockets httptools", "httptools", "websockets", "websockets")
UVICORN_SANSIO = _uvicorn("uvicorn websockets-sansio h11", "h11", "websockets-sansio", "websockets")
UVICORN_WSPROTO = _uvicorn("uvicorn wsproto httptools", "httptools", "wsproto", "wsproto")
HYPERCORN = Server(
    "hypercorn",
    ("hypercorn",),
    lambda port: ("hypercorn", APPLICATION, "--bind", f"127.0.0.1:{port}", "--websocket-ping-interval", "1"),
    grace=("--graceful-timeout", str(GRACE)),
)
GRANIAN = Server(
    "granian",
    ("granian",),
    lambda port: ("granian", APPLICATION, "--interface", "asgi", "--port", str(port), "--no-log"),
    workers=(("--workers", "2"), SIGHUP),
    reload=lambda folder: ("--reload", "--reload-paths", folder),
)
DAPHNE = Server(
    "daphne",
    ("daphne",),
    lambda port: (
        "daphne", APPLICATION, "--port", str(port), "-v", "0", "--ping-interval", "1", "--ping-timeout", PING_TIMEOUT,
    ),
    ping=True,
    lifespan=False,
)  # fmt: skip
TEST_CLIENT = Server("Starlette's TestClient", ("httpx",), lambda _port: ("outlive_conformance.test_client",))

SERVERS = (UVICORN, UVICORN_SANSIO, UVICORN_WSPROTO, HYPERCORN, GRANIAN, DAPHNE, TEST_CLIENT)


def arguments(server: Server, port: int, further: Sequence[str]) -> list[str]:
    """The whole command line."""
    return [sys.executable, "-m", *server.command(port), *further]
