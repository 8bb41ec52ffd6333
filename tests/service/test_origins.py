"""Which pages may open a WebSocket."""

from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from outlive_service.origins import KnownOrigins, read_origin
from outlive_service.settings import Settings, SettingsError, load_settings

pytestmark = pytest.mark.anyio

SITE = "chat.example.org"
ALLOWED = frozenset({("https", "app.example.org", 443), ("capacitor", "localhost", None)})


async def is_let_in(headers: list[tuple[str, str]], scheme: str = "ws") -> bool:
    entered, sent, rejected = [], [], []

    async def app(*_: Any) -> None:
        entered.append(True)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = KnownOrigins(app, allowed=ALLOWED, rejected=lambda: rejected.append(True))
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    await middleware({"type": "websocket", "scheme": scheme, "headers": raw}, receive, send)
    assert len(entered) + len(rejected) == 1
    assert sent == ([{"type": "websocket.close", "code": 1008}] if rejected else [])
    return bool(entered)


@pytest.mark.parametrize(
    ("host", "origin", "scheme"),
    [
        (SITE, f"http://{SITE}", "ws"),
        (SITE, f"https://{SITE}", "wss"),
        (SITE, f"https://{SITE}", "ws"),  # a proxy in front has ended TLS
        (SITE, f"http://{SITE}:80", "ws"),
        (f"{SITE}:80", f"http://{SITE}", "ws"),
        (f"{SITE}:443", f"https://{SITE}", "wss"),
        (f"{SITE}:8000", f"http://{SITE}:8000", "ws"),
        (SITE.upper(), f"HTTP://{SITE.title()}", "ws"),
        ("[::1]:8000", "http://[::1]:8000", "ws"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000", "ws"),
        (SITE, "https://app.example.org", "wss"),
        (SITE, "https://App.Example.org:443", "wss"),
        (SITE, "capacitor://localhost", "wss"),
    ],
)
async def test_pages_of_this_site_and_allowed_ones_get_in(host: str, origin: str, scheme: str) -> None:
    assert await is_let_in([("host", host), ("origin", origin)], scheme)


async def test_who_tells_no_origin_is_no_browser() -> None:
    assert await is_let_in([("host", SITE)])


@pytest.mark.parametrize(
    ("host", "origin", "scheme"),
    [
        (SITE, "https://evil.example", "wss"),
        (SITE, "null", "wss"),
        (SITE, "NULL", "wss"),
        (SITE, "", "wss"),
        (SITE, "*", "wss"),
        (SITE, SITE, "wss"),
        (SITE, f"//{SITE}", "wss"),
        (SITE, f"http://{SITE}", "wss"),  # a page that anybody on the way can change
        (SITE, f"https://{SITE}:8443", "wss"),
        (f"{SITE}:8000", f"http://{SITE}", "ws"),
        (f"{SITE}:8000", f"http://{SITE}:8001", "ws"),
        (SITE, f"https://{SITE}.evil.example", "wss"),
        (SITE, f"https://evil.example/{SITE}", "wss"),
        (SITE, f"https://evil.example#{SITE}", "wss"),
        (SITE, f"https://{SITE}@evil.example", "wss"),
        (SITE, f"https://evil.example@{SITE}", "wss"),
        (SITE, f"https://{SITE}/", "wss"),
        (SITE, f"https://{SITE} https://evil.example", "wss"),
        (SITE, f"https://{SITE}:443443", "wss"),
        (SITE, f"https://{SITE}:", "wss"),
        (SITE, f"ftp://{SITE}", "wss"),
        (SITE, "http://app.example.org", "wss"),
        (SITE, "https://xapp.example.org", "wss"),
        (SITE, "https://app.example.org:8443", "wss"),
        (SITE, f"https://{SITE[:-1]}\xb2", "wss"),
        ("", "https://", "wss"),
    ],
)
async def test_foreign_pages_do_not(host: str, origin: str, scheme: str) -> None:
    assert not await is_let_in([("host", host), ("origin", origin)], scheme)


@pytest.mark.parametrize(
    "headers",
    [
        [("origin", f"https://{SITE}")],
        [("host", SITE), ("host", "evil.example"), ("origin", f"https://{SITE}")],
        [("host", SITE), ("origin", f"https://{SITE}"), ("origin", "https://evil.example")],
        [("host", SITE), ("origin", f"https://{SITE}"), ("origin", f"https://{SITE}")],
    ],
)
async def test_what_is_ambiguous_does_not(headers: list[tuple[str, str]]) -> None:
    assert not await is_let_in(headers, "wss")


async def test_requests_are_not_asked() -> None:
    called = []

    async def app(*_: Any) -> None:
        called.append(True)

    middleware = KnownOrigins(app, allowed=ALLOWED, rejected=lambda: called.append(False))
    scope = {"type": "http", "headers": [(b"origin", b"https://evil.example")]}
    await middleware(scope, None, None)  # type: ignore[arg-type]
    assert called == [True]


# The service


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_the_service_denies_them_before_it_accepts_and_counts_them(service: Any) -> None:
    service.start(allowed_origins="https://app.example.org, http://localhost:3000")
    room = f"{service.url.replace('http', 'ws')}/rooms/lobby?user=ann"
    origins: list[Any] = [service.url, "https://app.example.org", "http://LOCALHOST:3000", None]
    for origin in origins:
        async with connect(room, origin=origin) as ws:
            await ws.recv()
    for foreign in ("https://evil.example", "null", "http://localhost"):
        with pytest.raises(InvalidStatus) as refusal:
            await connect(room, origin=foreign)  # type: ignore[arg-type]
        assert refusal.value.response.status_code == 403
    await service.ended(save_transcript=4)
    rejected = service.registry.get_sample_value("outlive_connections_rejected_total", {"reason": "origin"})
    assert rejected == 3
    await service.stop()
    assert service.runs("save_transcript") == {"completed": 4}


def test_allowed_origins_are_read_and_told_when_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_ORIGINS", "https://App.example.org , http://localhost:3000")
    assert load_settings(Settings).allowed_origins == {
        ("https", "app.example.org", 443),
        ("http", "localhost", 3000),
    }
    for wrong in ("*", "null", "app.example.org", "https://app.example.org/", "https://a.example,"):
        monkeypatch.setenv("ALLOWED_ORIGINS", wrong)
        with pytest.raises(SettingsError, match=r"not an origin such as https://chat\.example\.org"):
            load_settings(Settings)
    assert read_origin("https://a.example") == read_origin("HTTPS://A.example:443")
