"""Running an app by uvicorn, with a readiness that turns red as soon as the stop is known."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from outlive import Outlive
from outlive_service.garbage import Garbage
from outlive_service.handshakes import DeniedHandshakes, bounded_requests

logger = logging.getLogger("outlive_service")

PAGES_GRACE = 1
"""Seconds for the pages that are being answered when the drain has ended."""


class PagesServer(uvicorn.Server):
    """A uvicorn beside another one, on the same event loop, for Outlive's pages: it stops when it is told to.

    Args:
        config: uvicorn's, for `Outlive.pages_app()`.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        # At once, while there is nothing yet that a port which is taken could stop in the middle.
        self._socket = config.bind_socket()
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to serve."""
        self._serving = asyncio.create_task(self.serve([self._socket]), name="outlive pages")
        host, port, *_ = self._socket.getsockname()
        logger.info("pages are listening", extra={"host": host, "port": port})

    async def stop(self) -> None:
        """Stop, once what is being answered has been."""
        self.should_exit = True
        if self._serving is not None:
            await self._serving

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the other server."""
        yield


class DrainingServer(uvicorn.Server):
    """A uvicorn that tells Outlive of the signal at once.

    On its own uvicorn closes its connections first and runs the lifespan's shutdown then; a disconnect in between
    would count as the client's doing.

    Args:
        config: uvicorn's.
        outlive: what to tell; None for an app without one.
        shutdown_delay: how long to serve on after the signal, in seconds, while load balancers look at the
            readiness and go elsewhere. A second signal cuts it short.
        pages: the server of Outlive's pages, up from before the start until the drain has ended, so that it can be
            seen; None where the pages are on the app.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        outlive: Outlive | None,
        shutdown_delay: float = 0.0,
        pages: PagesServer | None = None,
    ) -> None:
        super().__init__(config)
        self._outlive = outlive
        self._shutdown_delay = shutdown_delay
        self._pages = pages
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signalled = False
        self._garbage = Garbage()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell where: the port may have been left to the system to choose."""
        self._loop = asyncio.get_running_loop()
        if self._pages is not None:
            await self._pages.start()
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                host, port, *_ = listener.getsockname()
                logger.info("listening", extra={"host": host, "port": port})

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Write the last lines of the log before the signal is raised again, which ends the process."""
        with super().capture_signals():
            try:
                yield
            finally:
                for handler in logging.getLogger().handlers:
                    handler.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, and drain within the lifespan's shutdown; the pages tell of it until the end. Tell which tasks are left."""
        await super().shutdown(sockets)
        if self._pages is not None:
            await self._pages.stop()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        logger.info("stopped", extra={"tasks_left": sorted(task.get_name() for task in left)})

    async def on_tick(self, counter: int) -> bool:
        """What uvicorn does ten times a second, and every second a look at the garbage."""
        if counter % 10 == 0:
            counts = None if self._outlive is None else self._outlive.counts
            at_rest = counts is None or not (counts.running or counts.pending)
            self._garbage.look(len(self.server_state.connections), at_rest=at_rest)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Turn red, and stop when the delay is over."""
        if self._loop is None or self._signalled:
            super().handle_exit(sig, frame)
            return
        self._signalled = True
        # Not from within a signal handler: it may have interrupted code that holds a lock the observers need.
        if self._outlive is not None:
            self._loop.call_soon_threadsafe(self._outlive.begin_drain)
        if self._shutdown_delay:
            later = (self._shutdown_delay, super().handle_exit, sig, frame)
            self._loop.call_soon_threadsafe(self._loop.call_later, *later)
        else:
            super().handle_exit(sig, frame)


def serve(
    app: FastAPI,
    *,
    host: str,
    port: int,
    graceful_timeout: int | None = None,
    shutdown_delay: float = 0.0,
    ws_ping_interval: float = 20.0,
    ws_ping_timeout: float = 20.0,
    ws_max_size: int = 65_536,
    keep_alive_timeout: int = 5,
    request_timeout: float = 30.0,
    max_head: int = 65_536,
    pages: tuple[str, int] | None = None,
) -> None:
    """Serve an app until a signal ends it. Times are in seconds, sizes in bytes; logging is left as it is set up.

    With `pages`, a host and a port, Outlive's pages are served there.
    """
    options: dict[str, Any] = {
        "http": bounded_requests(request_timeout, max_head),
        "timeout_keep_alive": keep_alive_timeout,
        "log_config": None,
        "access_log": False,
        "server_header": False,
    }
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        timeout_graceful_shutdown=graceful_timeout,
        ws=DeniedHandshakes,
        ws_ping_interval=ws_ping_interval,
        ws_ping_timeout=ws_ping_timeout,
        ws_max_size=ws_max_size,
        **options,
    )
    outlive: Outlive | None = getattr(app.state, "outlive", None)
    pages_server = None
    if outlive is not None and pages is not None:
        host, port = pages
        pages_server = PagesServer(
            uvicorn.Config(
                outlive.pages_app(),
                host=host,
                port=port,
                timeout_graceful_shutdown=PAGES_GRACE,
                lifespan="off",
                ws="none",
                **options,
            )
        )
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has stopped
        DrainingServer(config, outlive, shutdown_delay, pages_server).run()
