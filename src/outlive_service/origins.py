"""Which web pages may open a WebSocket here.

Browsers let a page of any origin open one, with the cookies of its user. So the server has to look at the Origin
header, which no page can forge; what isn't a browser sends none, or what it likes.
"""

import re
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII | re.IGNORECASE,
)
"""An origin as RFC 6454 serializes it, section 6.2. `null` is none: any page can get that, in a sandboxed frame."""
PORTS = {"http": 80, "https": 443}

Origin = tuple[str, str, int | None]
"""Scheme, host and port, comparable."""


def read_origin(text: str) -> Origin | None:
    """The origin that the text is, in lower case and with its default port; None if it is none."""
    found = ORIGIN.fullmatch(text)
    if found is None:
        return None
    scheme = found["scheme"].lower()
    port = PORTS.get(scheme) if found["port"] is None else int(found["port"])
    return scheme, found["host"].lower(), port


class KnownOrigins:
    """ASGI middleware that lets WebSockets in from pages of this site and of origins that are allowed.

    Others are denied with 403 before they are accepted. A client that tells no origin is no browser and is let in.

    Parameters:
        allowed: further origins, as `read_origin` gives them.
        rejected: called for each WebSocket that is denied.
    """

    def __init__(self, app: ASGIApp, *, allowed: frozenset[Origin], rejected: Callable[[], None]) -> None:
        self._app = app
        self._allowed = allowed
        self._rejected = rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and not self._is_known(scope):
            self._rejected()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        told = _values(scope, b"origin")
        if not told:
            return True
        origin = read_origin(told[0]) if len(told) == 1 else None
        return origin is not None and (origin in self._allowed or _is_own(origin, scope))


def _is_own(origin: Origin, scope: Scope) -> bool:
    hosts = _values(scope, b"host")
    # A proxy that ends TLS makes wss to ws, so only an encrypted request tells the page's scheme for sure.
    if len(hosts) != 1 or origin[0] not in (
        ("https",) if scope.get("scheme") == "wss" else ("http", "https")
    ):
        return False
    return read_origin(f"{origin[0]}://{hosts[0]}") == origin


def _values(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
