"""Outlive's own pages: metrics and health."""

from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from outlive.outcomes import State
from outlive.telemetry.metrics import registry_to_scrape


def metrics_page(registry: CollectorRegistry) -> ASGIApp:
    """The metrics in the format that the scraper asks for: OpenMetrics, with exemplars, or classic text."""

    async def respond(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        # In a thread: rendering thousands of series must not hold up the event loop.
        text = await run_in_threadpool(lambda: encode(registry_to_scrape(registry)))
        return Response(text, headers={"content-type": content_type})

    return _readable(respond)


def health_page() -> ASGIApp:
    """Alive: this process answers. Stays green in a drain, since a restart would only lose what is being finished."""

    async def respond(_request: Request) -> Response:
        return JSONResponse({"alive": True})

    return _readable(respond)


def readiness_page(state: Callable[[], State]) -> ASGIApp:
    """Ready for traffic: 200 while open, 503 from the first moment of a drain."""

    async def respond(_request: Request) -> Response:
        now = state()
        return JSONResponse({"state": now}, 200 if now is State.OPEN else 503)

    return _readable(respond)


def _readable(respond: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.method in ("GET", "HEAD"):
            response = await respond(request)
        else:
            response = PlainTextResponse("Method Not Allowed", 405, {"allow": "GET, HEAD"})
        await response(scope, receive, send)

    return page
