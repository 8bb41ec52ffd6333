"""`outlive serve` as a process of its own, and a receiver of OTLP, so that whole traces of several processes can be looked at."""

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class ServiceProcess:
    """A process of the service, and the events that it logged so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []

    async def event(self, name: str) -> dict[str, Any]:
        """Read on until this event."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            async for line in self.process.stdout:
                event: dict[str, Any] = json.loads(line)
                self.events.append(event)
                if event["event"] == name:
                    return event
        raise AssertionError(f"no {name!r} among {self.events}")

    async def address(self, name: str = "listening") -> str:
        """Where it listens."""
        event = await self.event(name)
        return f"{event['host']}:{event['port']}"

    async def stop(self) -> dict[str, Any]:
        """Stop it by SIGTERM, as is usual, and give its account, whose sums are right."""
        self.process.send_signal(signal.SIGTERM)
        closed = await self.event("closed")
        async with asyncio.timeout(30):
            assert await self.process.wait() == -signal.SIGTERM
        assert closed["submitted"] == sum(closed["outcomes"].values())
        return closed


@pytest.fixture
def serve_process(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[ServiceProcess]]:
    """`async with serve_process(PORT=0, ...) as process`: the service, with these settings and no others."""

    @asynccontextmanager
    async def serve(
        *,
        command: tuple[str, ...] = ("-m", "outlive", "serve"),
        stdout: int = subprocess.PIPE,
        **variables: object,
    ) -> AsyncIterator[ServiceProcess]:
        environment = {
            "PATH": os.environ["PATH"],
            "PORT": "0",
            "DATABASE_URL": f"sqlite:///{tmp_path / 'outlive.db'}",
            **{name: str(value) for name, value in variables.items()},
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            env=environment,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            limit=2**20,
        )
        try:
            yield ServiceProcess(process)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    return serve


@dataclass
class ReceivedSpan:
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start: int
    end: int
    status: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    events: list[tuple[str, dict[str, Any]]]


@dataclass
class Receiver:
    endpoint: str
    spans: list[ReceivedSpan] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def traces(self) -> dict[str, list[ReceivedSpan]]:
        traces: dict[str, list[ReceivedSpan]] = {}
        for span in self.spans:
            traces.setdefault(span.trace_id, []).append(span)
        return traces


def plain(attributes: Any) -> dict[str, Any]:
    return {
        item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value") for item in attributes
    }


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            received.bodies.append(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = plain(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    received.spans.extend(
                        ReceivedSpan(
                            service,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.name,
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            span.status.code,
                            plain(span.attributes),
                            [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                            [(event.name, plain(event.attributes)) for event in span.events],
                        )
                        for span in scope.spans
                    )
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received = Receiver(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield received
    server.shutdown()
    server.server_close()
    thread.join()
