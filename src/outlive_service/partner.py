"""The outside world of the demo, as an app of its own: an OpenAI-compatible upstream, notices, billing.

It can be made slow, failing or hanging, and keeps its own record of what reached it.
"""

import asyncio
import json
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Annotated, Literal
from uuid import uuid4

from anyio import to_thread
from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.trace import TracerProvider
from pydantic import BaseModel, Field
from starlette.types import Receive, Scope, Send

from outlive.telemetry.setup import set_up_logging, set_up_tracing
from outlive_service.refusals import refuse
from outlive_service.settings import PartnerSettings, Pause, Rate

WORDS = ("work", "that", "was", "asked", "for", "must", "not", "die", "when", "its", "caller", "leaves")
TRANSPORT = "outlive_service.transport"
TURNS_TO_READ_ON = 5
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Fault = Literal["error", "hang", "reset"]
Key = Annotated[str, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Id = Annotated[str, Field(min_length=1, max_length=200)]


class Notice(BaseModel):
    """A session has ended."""

    session: Id
    room: Name
    user: Name
    lines: int = Field(ge=0)


class Charge(BaseModel):
    """Tokens to be paid for."""

    completion: Id
    user: Name
    tokens: int = Field(ge=0)


class Question(BaseModel):
    """What the partner reads of an OpenAI chat completion request."""

    max_tokens: int = Field(default=64, ge=1)


class Faults(BaseModel, extra="forbid"):
    """How one kind of request goes wrong: latency in seconds, rates from 0 to 1."""

    latency: Pause = 0.0
    error_rate: Rate = 0.0
    hang_rate: Rate = 0.0
    reset_rate: Rate = 0.0


class CompletionFaults(Faults):
    """How completions go wrong, and the seconds between two tokens."""

    token_interval: Pause = 0.02


class FaultPlan(BaseModel, extra="forbid"):
    """How every kind of request goes wrong."""

    notices: Faults = Faults()
    charges: Faults = Faults()
    completions: CompletionFaults = CompletionFaults()


@dataclass(slots=True)
class Attempt:
    """A request that arrived, and the fault that it meets."""

    key: str
    fault: Fault | None


@dataclass(slots=True)
class Charged:
    """A charge that was taken, and how often it was asked for."""

    tokens: int
    attempts: int


@dataclass(slots=True)
class Generation:
    """What was generated for one request id."""

    tokens: int = 0
    finished: bool = False


@dataclass(slots=True)
class Records:
    """What reached the partner."""

    notices: list[Attempt] = field(default_factory=list)
    charges: dict[str, Charged] = field(default_factory=dict)
    charge_attempts: list[Attempt] = field(default_factory=list)
    generations: dict[str, Generation] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.notices) + len(self.charge_attempts) + len(self.generations)


class Partner:
    """What the partner does with a request before it answers: note it, and let it meet its fault."""

    def __init__(self, settings: PartnerSettings) -> None:
        self.settings = settings
        self.records = Records()
        self.plan = FaultPlan(
            notices=Faults(
                latency=settings.notices_latency,
                error_rate=settings.notices_error_rate,
                hang_rate=settings.notices_hang_rate,
                reset_rate=settings.notices_reset_rate,
            ),
            charges=Faults(
                latency=settings.charges_latency,
                error_rate=settings.charges_error_rate,
                hang_rate=settings.charges_hang_rate,
                reset_rate=settings.charges_reset_rate,
            ),
            completions=CompletionFaults(
                latency=settings.completions_latency,
                error_rate=settings.completions_error_rate,
                hang_rate=settings.completions_hang_rate,
                reset_rate=settings.completions_reset_rate,
                token_interval=settings.token_interval,
            ),
        )
        self._random = Random(settings.seed)

    def draw(self, key: str, faults: Faults) -> Attempt:
        """Draw the fault of a request that has arrived.

        Raises:
            HTTPException: 507, there is no room to note it.
        """
        if len(self.records) >= self.settings.max_records:
            raise HTTPException(
                507, f"the record is full: PARTNER_MAX_RECORDS is {self.settings.max_records}"
            )
        drawn = self._random.random()
        rates: dict[Fault, float] = {
            "error": faults.error_rate,
            "hang": faults.hang_rate,
            "reset": faults.reset_rate,
        }
        for fault, rate in rates.items():
            if drawn < rate:
                return Attempt(key, fault)
            drawn -= rate
        return Attempt(key, None)

    async def suffer(self, request: Request, attempt: Attempt, faults: Faults) -> None:
        """Wait and fail as drawn. Whoever runs out of patience during the latency has met a hang.

        Raises:
            HTTPException: there is nothing to be done for this request.
        """
        hangs = attempt.fault == "hang"
        try:
            async with asyncio.timeout(self.settings.hang_limit if hangs else faults.latency):
                await departed(request)
        except TimeoutError:
            if hangs:
                raise HTTPException(504, "injected hang") from None
            # Of what came while this process was held up, the request is read first, and its caller's end turns later.
            for _ in range(TURNS_TO_READ_ON):
                await asyncio.sleep(0)
            left = await request.is_disconnected()
        else:
            left = True
        if left:
            attempt.fault = "hang"
            raise HTTPException(499, "the caller has left")
        if attempt.fault == "error":
            raise HTTPException(503, "injected error")
        if attempt.fault == "reset":
            reset(request)
            raise HTTPException(499, "injected reset")


async def departed(request: Request) -> None:
    """Return when the caller has left. The body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def reset(request: Request) -> None:
    """End the caller's connection by a TCP reset, as a crashed or restarted machine does."""
    transport: asyncio.Transport = request.scope[TRANSPORT]
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    transport.abort()


class PartnerApp(FastAPI):
    """An app whose handlers can get at the connection itself, which ASGI has no word for."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note the transport, which uvicorn's receive belongs to, before anybody wraps that."""
        scope[TRANSPORT] = getattr(getattr(receive, "__self__", None), "transport", None)
        await super().__call__(scope, receive, send)


async def generate(generation: Generation, tokens: int, interval: float) -> AsyncIterator[str]:
    """Stream so many tokens as OpenAI does. When the caller leaves, the server cancels it in its sleep."""
    for n in range(tokens):
        await asyncio.sleep(interval)
        generation.tokens += 1
        delta = {"content": WORDS[n % len(WORDS)] + " "}
        yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n"
    generation.finished = True
    yield "data: [DONE]\n\n"


def service(settings: PartnerSettings) -> FastAPI:
    """Set up the process's logging and tracing, and build the partner."""
    set_up_logging()
    # Its callers are ours: what they do and what it does belongs in one trace.
    provider = set_up_tracing("outlive-partner", trust_clients=True)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await to_thread.run_sync(provider.force_flush)

    app = create_partner(settings, tracer_provider=provider)
    app.router.lifespan_context = lifespan
    return app


def create_partner(
    settings: PartnerSettings | None = None, *, tracer_provider: TracerProvider | None = None
) -> FastAPI:
    """Build the partner; its settings are by default read from the environment."""
    partner = Partner(settings or PartnerSettings())
    records = partner.records
    attempts: Counter[str] = Counter()
    app = PartnerApp(title="Outlive's partner", max_body_size=1_000_000)
    app.add_exception_handler(RequestValidationError, refuse)

    @app.post("/notices")
    async def notice(request: Request, notice: Notice, key: Key) -> dict[str, str]:  # noqa: ARG001 - checked only
        faults = partner.plan.notices
        records.notices.append(attempt := partner.draw(key, faults))
        await partner.suffer(request, attempt, faults)
        return {"noted": key}

    @app.post("/charges")
    async def charge(request: Request, charge: Charge, key: Key) -> dict[str, int]:
        faults = partner.plan.charges
        records.charge_attempts.append(attempt := partner.draw(key, faults))
        attempts[key] += 1
        await partner.suffer(request, attempt, faults)
        charged = records.charges.setdefault(key, Charged(charge.tokens, 0))
        charged.attempts = attempts[key]
        if charged.tokens != charge.tokens:
            raise HTTPException(409, "this Idempotency-Key was used for another charge")
        return {"charged": charged.tokens}

    @app.post("/v1/chat/completions")
    async def complete(
        request: Request,
        question: Question,
        request_id: Annotated[str | None, Header(alias="X-Request-Id", max_length=200)] = None,
    ) -> StreamingResponse:
        faults = partner.plan.completions
        attempt = partner.draw(request_id or uuid4().hex, faults)
        generation = records.generations.setdefault(attempt.key, Generation())
        await partner.suffer(request, attempt, faults)

        tokens = min(question.max_tokens, partner.settings.max_tokens)
        return StreamingResponse(
            generate(generation, tokens, faults.token_interval), media_type="text/event-stream"
        )

    @app.get("/records")
    async def read_records() -> dict[str, object]:
        return asdict(records)

    @app.get("/faults")
    async def read_faults() -> FaultPlan:
        return partner.plan

    @app.put("/faults")
    async def replace_faults(faults: FaultPlan) -> FaultPlan:
        """Replace the whole plan: what the body leaves out has no faults."""
        partner.plan = faults
        return faults

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        return {"status": "ok"}

    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=tracer_provider,
        excluded_urls="^https?://[^/]+/(healthz|records|faults)$",
        exclude_spans=["receive", "send"],
    )
    return app
