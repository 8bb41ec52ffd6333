"""Outlive's own pages: metrics and health, and who may read them."""

import re
from base64 import b64decode
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from hmac import compare_digest

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from outlive.errors import DeclarationError
from outlive.outcomes import State
from outlive.telemetry.metrics import scrape

SHORTEST_TOKEN = 16
"""Characters; with fewer, trying them all becomes thinkable."""
CHALLENGES = ("Bearer", 'Basic realm="Outlive", charset="UTF-8"')
"""How the token may be sent, each in a header of its own: browsers read one challenge of a header."""
SCRAPES = 2
"""Threads that render metrics, of one event loop."""
TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
"""What a client can send as a bearer token (RFC 6750, section 2.1)."""

_threads: RunVar[CapacityLimiter] = RunVar("outlive_scrapes")


def check_token(token: str) -> None:
    """Refuse a token that protects nothing or that no client could send; the message doesn't repeat it.

    Raises:
        DeclarationError: it is too short, or has other characters than a bearer token's.
    """
    if len(token) < SHORTEST_TOKEN:
        raise DeclarationError(
            f"the token for Outlive's pages has {len(token)} characters and can be guessed: use at least "
            f"{SHORTEST_TOKEN}, such as what `python3 -c 'import secrets; print(secrets.token_urlsafe())'` prints"
        )
    if not TOKEN.fullmatch(token):
        raise DeclarationError(
            "no client could send this token for Outlive's pages: it has letters, digits and -._~+/ only, and "
            "perhaps = at its end"
        )


def protected(page: ASGIApp, token: str) -> ASGIApp:
    """The page, for who sends the token; anybody else learns nothing but that it is asked for.

    It is sent as `Authorization: Bearer TOKEN`, or as the password of whatever user (RFC 7617): a browser can send
    no bearer token for a page that a person opens, but it asks for a password.
    """
    wanted = token.encode()
    refused = Response(status_code=401)
    for challenge in CHALLENGES:
        refused.headers.append("www-authenticate", challenge)

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        # In constant time: how long a refusal takes must not tell how much of the token was right.
        if len(sent) == 1 and compare_digest(_token(sent[0]), wanted):
            await page(scope, receive, send)
        else:
            await refused(scope, receive, send)

    return guard


def _token(authorization: bytes) -> bytes:
    scheme, _, credentials = authorization.partition(b" ")
    match scheme.lower():
        case b"bearer":
            return credentials.strip(b" ")
        case b"basic":
            with suppress(ValueError):
                return b64decode(credentials.strip(b" "), validate=True).partition(b":")[2]
    return b""


def pages_app(pages: Mapping[str, ASGIApp]) -> ASGIApp:
    """The pages as an app of their own, in which nothing else is."""
    # A router without routes answers 404, refuses WebSockets, and knows what a lifespan is.
    otherwise = Router()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        page = pages.get(scope["path"]) if scope["type"] == "http" else None
        await (page or otherwise)(scope, receive, send)

    return app


def metrics_page(registry: CollectorRegistry) -> ASGIApp:
    """The metrics in the format that the scraper asks for: OpenMetrics, with exemplars, or classic text."""

    async def respond(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        headers = {"content-type": content_type}
        if request.method == "HEAD":
            return StreamingResponse(iter(()), headers=headers)
        # The first part has the app's own collectors: what they raise must be an error and not half a page.
        parts = scrape(registry, encode, content_type)
        first = await _next(parts)
        return StreamingResponse(_from(first, parts), headers=headers)

    return readable(respond)


async def _next(parts: Iterator[bytes]) -> bytes | None:
    # In a thread and in parts: thousands of series must not hold up the event loop, neither as work nor as one write.
    # Not in a thread of the application's: in the line for those a scrape would stand again and again.
    try:
        threads = _threads.get()
    except LookupError:
        threads = CapacityLimiter(SCRAPES)
        _threads.set(threads)
    return await run_sync(next, parts, None, limiter=threads)


async def _from(part: bytes | None, parts: Iterator[bytes]) -> AsyncGenerator[bytes]:
    while part is not None:
        yield part
        part = await _next(parts)


def health_page() -> ASGIApp:
    """Alive: this process answers. Stays green in a drain, since a restart would only lose what is being finished."""

    async def respond(_request: Request) -> Response:
        return JSONResponse({"alive": True})

    return readable(respond)


def readiness_page(state: Callable[[], State]) -> ASGIApp:
    """Ready for traffic: 200 while open, 503 from the first moment of a drain."""

    async def respond(_request: Request) -> Response:
        now = state()
        return JSONResponse({"state": now}, 200 if now is State.OPEN else 503)

    return readable(respond)


def readable(respond: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    """An application for what can be read and not changed."""

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.method in ("GET", "HEAD"):
            response = await respond(request)
        else:
            response = PlainTextResponse("Method Not Allowed", 405, {"allow": "GET, HEAD"})
        await response(scope, receive, send)

    return page
