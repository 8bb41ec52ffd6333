"""Whether the server has been told to stop and waits for its connections."""

import signal


def server_waits() -> bool | None:
    """Tell whether uvicorn stops, and None under a server that can't be asked.

    An ASGI server tells an application of its stop when all connections have ended, and uvicorn waits for that
    without a limit unless it is given one; an open feed would never learn of it. But uvicorn's signal handler is a
    method of the server, which has a public `should_exit`.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    waits = getattr(server, "should_exit", None)
    return waits if isinstance(waits, bool) else None
