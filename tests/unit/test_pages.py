"""Who may read Outlive's pages, and where."""

import asyncio
import gc
import tracemalloc
from base64 import b64encode
from collections.abc import Iterable
from typing import Any

import pytest
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp
from starlette.websockets import WebSocketDisconnect

from outlive import Outlive
from outlive.errors import DeclarationError

TOKEN = "a-token-of-a-test-and-of-nothing-else"
BEARER = {"authorization": f"Bearer {TOKEN}"}
PROTECTED = ("/metrics", "/further")
HEALTH = ("/healthz", "/readyz")


def basic(credentials: str) -> str:
    return f"Basic {b64encode(credentials.encode()).decode()}"


@pytest.fixture
def further() -> dict[str, ASGIApp]:
    return {"/further": PlainTextResponse("further")}


def client_of(registry: CollectorRegistry, **options: Any) -> TestClient:
    app = FastAPI()
    Outlive(registry=registry, **options).install(app)
    return TestClient(app)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_who_has_the_token_reads_everything(
    registry: CollectorRegistry, further: dict[str, ASGIApp], scheme: str
) -> None:
    with client_of(registry, token=TOKEN, pages=further) as client:
        for path in (*PROTECTED, *HEALTH):
            assert client.get(path, headers={"authorization": f"{scheme} {TOKEN}"}).status_code == 200, path


@pytest.mark.parametrize("user", ["", "ann", "ännchen"])
def test_a_browser_sends_the_token_as_a_password(
    registry: CollectorRegistry, further: dict[str, ASGIApp], user: str
) -> None:
    with client_of(registry, token=TOKEN, pages=further) as client:
        for path in PROTECTED:
            assert client.get(path, headers={"authorization": basic(f"{user}:{TOKEN}")}).status_code == 200, (
                path
            )


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", f"Bearer {TOKEN[:-1]}")],
        [("authorization", f"Bearer {TOKEN}x")],
        [("authorization", f"Bearer {TOKEN} x")],
        [("authorization", f"Bearer {TOKEN.upper()}")],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", basic(TOKEN))],
        [("authorization", basic(f"{TOKEN}:"))],
        [("authorization", basic(f"ann:{TOKEN}x"))],
        [("authorization", basic(f"ann:x:{TOKEN}"))],
        [("authorization", f"Basic ann:{TOKEN}")],
        [("authorization", "Basic ====")],
        [("authorization", basic(f"ann:{TOKEN}")), ("authorization", basic(f"ann:{TOKEN}"))],
        [("authorization", TOKEN)],
        [("authorization", "Bearer ä".encode("latin-1"))],
        [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")],
        [("x-authorization", f"Bearer {TOKEN}")],
    ],
)
def test_who_has_not_learns_nothing_but_that(
    registry: CollectorRegistry, further: dict[str, ASGIApp], headers: list[tuple[str, str]]
) -> None:
    with client_of(registry, token=TOKEN, pages=further) as client:
        for path in PROTECTED:
            for method in ("GET", "HEAD", "POST"):
                refused = client.request(method, path, headers=headers)
                assert (refused.status_code, refused.content) == (401, b""), (method, path)
                assert refused.headers["www-authenticate"] == 'Bearer, Basic realm="Outlive", charset="UTF-8"'
                assert set(refused.headers) == {"www-authenticate", "content-length"}
        for path in HEALTH:
            assert client.get(path, headers=headers).status_code == 200, path


def test_a_token_in_the_query_is_none(registry: CollectorRegistry) -> None:
    with client_of(registry, token=TOKEN) as client:
        assert client.get(f"/metrics?token={TOKEN}&access_token={TOKEN}").status_code == 401


def test_health_and_readiness_can_ask_for_it_too(registry: CollectorRegistry) -> None:
    with client_of(registry, token=TOKEN, protect_health=True) as client:
        for path in HEALTH:
            assert client.get(path).status_code == 401
            assert client.get(path, headers=BEARER).status_code == 200


@pytest.mark.parametrize(
    ("token", "what_to_do"),
    [
        ("", "use at least 16"),
        ("short-and-secret", None),
        ("shortandsecret!", "use at least 16"),
        ("a token with spaces in it", "letters, digits"),
        ("a-token-with-a-line-break\n", "letters, digits"),
        ("ein-geheimes-gewürz-genügt", "letters, digits"),
    ],
)
def test_a_token_that_protects_nothing_is_refused_and_not_repeated(
    registry: CollectorRegistry, token: str, what_to_do: str | None
) -> None:
    if what_to_do is None:
        Outlive(registry=registry, token=token)
        return
    with pytest.raises(DeclarationError, match=what_to_do) as refusal:
        Outlive(registry=registry, token=token)
    assert not token or token.strip() not in str(refusal.value)


def test_protecting_health_without_a_token_is_refused(registry: CollectorRegistry) -> None:
    with pytest.raises(DeclarationError, match="set a token too"):
        Outlive(registry=registry, protect_health=True)


def test_pages_can_be_at_an_address_of_their_own(
    registry: CollectorRegistry, further: dict[str, ASGIApp]
) -> None:
    app = FastAPI()
    outlive = Outlive(registry=registry, pages=further, token=TOKEN)
    outlive.install(app, pages=False)
    with TestClient(app) as client, TestClient(outlive.pages_app()) as pages:
        for path in (*PROTECTED, *HEALTH):
            assert client.get(path, headers=BEARER).status_code == 404, path
            assert pages.get(path, headers=BEARER).status_code == 200, path
        assert pages.get("/metrics").status_code == 401
        for path in ("/", "/metrics/", "//metrics", "/metrics/..", "/Metrics"):
            assert pages.get(path, headers=BEARER).status_code == 404, path
        with pytest.raises(WebSocketDisconnect), pages.websocket_connect("/metrics", headers=BEARER):
            pass


def test_pages_elsewhere_tell_of_the_drain(run: Any, outlive: Outlive, lifespan: Any, wire: Any) -> None:
    app = FastAPI()
    outlive.install(app, pages=False)

    @outlive.task(timeout=5.0)
    async def save() -> None:
        await asyncio.sleep(1)

    async def ready(after: float) -> int:
        await asyncio.sleep(after)
        connection = wire(outlive.pages_app(), "http", "/readyz")
        await connection.handler
        return int(connection.status)

    async def main() -> None:
        async with lifespan(app):
            assert await ready(0) == 200
            save.submit()
            in_between = asyncio.create_task(ready(0.5))
        assert await in_between == 503
        assert await ready(0) == 503

    run(main())


class Broken(Collector):
    """One of the app's own, whose backend has gone."""

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        raise ConnectionError("the backend has gone")


def test_a_collector_that_raises_is_an_error_and_not_half_a_page(registry: CollectorRegistry) -> None:
    registry.register(Broken())
    app = FastAPI()
    Outlive(registry=registry).install(app)
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get("/metrics")
    assert (response.status_code, response.text) == (500, "Internal Server Error")


def long(registry: CollectorRegistry) -> FastAPI:
    """An app whose metrics are a long page."""
    app = FastAPI()
    outlive = Outlive(registry=registry)
    outlive.install(app)
    for number in range(50):
        outlive.scope(f"flush {number}", timeout=1.0)
    return app


def parts_of(wire: Any) -> list[bytes]:
    return [message["body"] for message in wire.sent if message.get("body")]


def test_a_long_page_comes_in_parts(run: Any, registry: CollectorRegistry, wire: Any) -> None:
    async def main() -> None:
        connection = wire(long(registry), "http", "/metrics")
        await connection.handler
        # One write of it all would hold up the event loop, in a service with a thousand tasks for several milliseconds.
        parts = parts_of(connection)
        assert len(parts) > 5
        assert max(map(len, parts)) < 200_000
        assert len(connection.body.splitlines()) > 5_000

    run(main())


def test_a_scraper_that_leaves_in_the_middle_is_sent_no_more(
    run: Any, registry: CollectorRegistry, wire: Any
) -> None:
    app = long(registry)

    async def main() -> None:
        left = wire(app, "http", "/metrics")

        async def leave() -> None:
            left.put({"type": "http.disconnect"})
            await asyncio.sleep(1)

        left.while_sending = leave
        await left.handler
        stays = wire(app, "http", "/metrics")
        await stays.handler
        assert len(parts_of(left)) < len(parts_of(stays))

    run(main())


def test_a_look_at_the_head_renders_nothing(run: Any, registry: CollectorRegistry, wire: Any) -> None:
    registry.register(Broken())

    async def main() -> None:
        connection = wire(long(registry), "http", "/metrics", method="HEAD")
        await connection.handler
        assert (connection.status, connection.body) == (200, b"")

    run(main())


def test_a_scrape_does_not_wait_for_the_threads_of_the_app(registry: CollectorRegistry, wire: Any) -> None:
    app = long(registry)

    async def main() -> None:
        all_of_them = current_default_thread_limiter()
        everybody = [object() for _ in range(int(all_of_them.total_tokens))]
        for one in everybody:
            all_of_them.acquire_on_behalf_of_nowait(one)
        connection = wire(app, "http", "/metrics")
        async with asyncio.timeout(10):
            await connection.handler
        assert connection.status == 200

    # On a real clock: the virtual one runs out while a thread works.
    asyncio.run(main())


def test_no_accept_header_makes_a_page_to_keep(registry: CollectorRegistry) -> None:
    def kept_after(versions: range) -> int:
        for version in versions:
            form = f"application/openmetrics-text; version=1.0.{version}"
            assert client.get("/metrics", headers={"accept": form}).status_code == 200
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    with TestClient(long(registry)) as client:
        tracemalloc.start()
        try:
            grown = -kept_after(range(3)) + kept_after(range(3, 23))
        finally:
            tracemalloc.stop()
    # Less than two of the 20 pages, each of which has 600 kB.
    assert grown < 1_000_000
