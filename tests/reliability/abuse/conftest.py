"""The service under attack, and what must hold whatever is done to it."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

SECRET = "s3cret-words-of-a-user"
"""Said in payloads, query strings and headers: nothing that tells of the service may hold it."""
AT_ONCE = 50
UVICORNS = {"Invalid UTF-8 sequence received from client."}
"""Errors that uvicorn logs although they are the client's."""
SPAN_NAMES = re.compile(
    r"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE|CONNECT|QUERY|HTTP|_OTHER)?( ?/(rooms/\{room\}|completions|exports/usage\.csv|docs|openapi\.json)?)?"
    r"|disconnect (/rooms/\{room\}|/completions|/exports/usage\.csv|unmatched)|save_transcript|notify_partner|announce_departure|save_answer|bill_tokens"
    r"|release_export|read_page|POST|connect"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came until the connection ended."""

    raw: bytes

    @property
    def status(self) -> int:
        """Its status; 0 where there was no answer."""
        return int(self.raw[9:12]) if self.raw.startswith(b"HTTP/1.1 ") else 0


class Attacked:
    """The service, and ways to talk to it that no decent client has."""

    secret = SECRET

    def __init__(self, process: Any, address: str) -> None:
        self.process = process
        self.headers: dict[str, str] = {}
        self.address = address
        self.host, port = address.split(":")
        self.port = int(port)
        self.account: dict[str, Any] = {}
        self.spans = 0

    async def say(self, request: bytes, *, patience: float = 20.0) -> Answer:
        """Write the bytes to a connection of their own, and give what comes until it ends."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        answer = b""
        try:
            async with asyncio.timeout(patience):
                with suppress(ConnectionError):
                    writer.write(request)
                    while part := await reader.read(65_536):
                        answer += part
        finally:
            writer.close()
        return Answer(answer)

    async def say_all(self, requests: Iterable[bytes]) -> list[Answer]:
        """Many of them, so many at once."""
        places = asyncio.Semaphore(AT_ONCE)

        async def one(request: bytes) -> Answer:
            async with places:
                return await self.say(request)

        return await asyncio.gather(*map(one, requests))

    async def look(self, path: str) -> httpx.Response:
        """One of Outlive's pages, which has to come within a second."""
        async with httpx.AsyncClient() as client, asyncio.timeout(5):
            return await client.get(f"http://{self.address}{path}", headers=self.headers)

    async def series(self) -> set[str]:
        """The names and labels of all series there are."""
        text = (await self.look("/metrics")).text
        return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}

    async def sample(self, series: str) -> float:
        """The value of one series."""
        found = [line for line in (await self.look("/metrics")).text.splitlines() if line.startswith(series)]
        return float(found[0].rpartition(" ")[2])


@pytest.fixture
def attacked(serve_process: Any, receiver: Any) -> Callable[..., AbstractAsyncContextManager[Attacked]]:
    """`async with attacked(**settings) as target`. After the attack it must be alive, right in its sums and discreet."""

    @asynccontextmanager
    async def attacked(**settings: Any) -> AsyncIterator[Attacked]:
        settings = {
            "LOG_LEVEL": "debug",
            "PARTNER_URL": "http://127.0.0.1:9",
            "DEPARTURE_GRACE": 0,
            "GRACEFUL_TIMEOUT": 1,
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            **settings,
        }
        async with serve_process(**settings) as process:
            target = Attacked(process, await process.address())
            if "PAGES_TOKEN" in settings:
                target.headers["authorization"] = f"Bearer {settings['PAGES_TOKEN']}"
            yield target
            assert (await target.look("/readyz")).json() == {"state": "open"}
            metrics = (await target.look("/metrics")).text
            connections = [line for line in metrics.splitlines() if line.startswith("outlive_connections{")]
            target.account = await process.stop()
            rest = (await process.process.stdout.read()).decode()
        log = "\n".join(map(repr, process.events)) + rest
        errors = {event["event"] for event in process.events if event["level"] in ("error", "critical")}
        assert errors <= UVICORNS
        for where, text in (
            ("metrics", metrics),
            ("log", log),
            ("spans", b"".join(receiver.bodies).decode("latin-1")),
        ):
            assert SECRET not in text, where
        names = {span.name for span in receiver.spans}
        assert {name for name in names if not SPAN_NAMES.fullmatch(name)} == set()
        assert connections
        target.spans = len(receiver.spans)

    return attacked
