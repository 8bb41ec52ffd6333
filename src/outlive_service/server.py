"""Running an app by uvicorn, with a readiness that turns red as soon as the stop is known."""

import asyncio
import logging
import socket
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from outlive import Outlive

logger = logging.getLogger("outlive_service")


class DrainingServer(uvicorn.Server):
    """A uvicorn that tells Outlive of the signal at once.

    On its own uvicorn closes its connections first and runs the lifespan's shutdown then; a disconnect in between
    would count as the client's doing.

    Args:
        config: uvicorn's.
        outlive: what to tell; None for an app without one.
        shutdown_delay: how long to serve on after the signal, in seconds, while load balancers look at the
            readiness and go elsewhere. A second signal cuts it short.
    """

    def __init__(self, config: uvicorn.Config, outlive: Outlive | None, shutdown_delay: float = 0.0) -> None:
        super().__init__(config)
        self._outlive = outlive
        self._shutdown_delay = shutdown_delay
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signalled = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell where: the port may have been left to the system to choose."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                host, port, *_ = listener.getsockname()
                logger.info("listening", extra={"host": host, "port": port})

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
) -> None:
    """Serve an app until a signal ends it. Times are in seconds; logging is left as it is set up."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=graceful_timeout,
        ws_ping_interval=ws_ping_interval,
        ws_ping_timeout=ws_ping_timeout,
    )
    outlive = getattr(app.state, "outlive", None)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has stopped
        DrainingServer(config, outlive, shutdown_delay).run()
