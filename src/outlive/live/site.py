"""The live page's own files, as they are."""

from collections.abc import Awaitable, Callable, Iterator
from hashlib import sha256
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self'; script-src 'self'; style-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing from elsewhere, nothing inline, in nobody's frame (Content Security Policy, level 3)."""
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

Respond = Callable[[Request], Awaitable[Response]]


def site() -> Iterator[tuple[str, Respond]]:
    """Give each file's path below the page's own, and what answers there; the page itself is at ""."""
    for file in files("outlive.live").joinpath("static").iterdir():
        _, dot, suffix = file.name.rpartition(".")
        if content_type := CONTENT_TYPES.get(dot + suffix):
            path = "" if file.name == "index.html" else file.name
            yield path, _file(file.read_bytes(), content_type)


def _file(body: bytes, content_type: str) -> Respond:
    tag = f'"{sha256(body).hexdigest()[:32]}"'
    headers = {**HEADERS, "content-type": content_type, "etag": tag}

    async def respond(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={**HEADERS, "etag": tag})
        return Response(body, headers=headers)

    return respond


def redirect(path: str) -> Respond:
    """Send who forgot the last slash of the page's path to where it is, whatever is mounted or proxied above."""
    relative = path.rstrip("/").rpartition("/")[2] + "/"

    async def respond(_request: Request) -> Response:
        return RedirectResponse(relative, 308)

    return respond
