"""The HTTP client for the partner and the upstream."""

from typing import Any

import httpx


class Client(httpx.AsyncClient):
    """One whose answers are gone when nobody holds them any more.

    httpx's responses and their streams hold each other, so each one would wait for the garbage collector with its
    request and its headers, and after thousands of calls that stops everything for seconds.
    """

    async def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> httpx.Response:
        """Send a request."""
        response = await super().send(request, stream=stream, **options)
        if not stream:
            response.stream = httpx.ByteStream(b"")  # what was in it has been read
        return response
