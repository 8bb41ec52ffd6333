"""Answers that stream token by token, and the bill that must be right however they end."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any
from uuid import uuid4

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.types import Receive, Scope, Send

from outlive import Outlive, Run
from outlive_service.records import Answer
from outlive_service.refusals import NO_JSON
from outlive_service.settings import Settings
from outlive_service.store import Store

logger = logging.getLogger(__name__)

MAX_EVENT = 1_000_000
"""Characters of one event from the upstream."""

RETRY_PAUSE = 0.1
"""Seconds before the second attempt to charge; each one after it waits twice as long."""

TOKENS = 64
"""Of an answer, at most, where the question doesn't say."""

EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["start", "message", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["data"],
}
RESPONSES = NO_JSON | {
    200: {
        "description": "An event `start` with the answer's id, a `message` (which has no name) for each token, and `done` or `error`.",
        "content": {"text/event-stream": {"itemSchema": EVENT}},
    }
}
"""For the OpenAPI document."""


class Question(BaseModel):
    """What is asked."""

    user: Annotated[str, Field(min_length=1, max_length=64)]
    prompt: str
    max_tokens: int


class Delta(BaseModel):
    """The new part of an OpenAI choice."""

    content: str | None = None


class Choice(BaseModel):
    """An OpenAI choice; there is one."""

    delta: Delta = Delta()


class Chunk(BaseModel):
    """An OpenAI chunk; what only tells of the usage has no choices, and an error has nothing that is read."""

    choices: list[Choice] = []


class UpstreamError(Exception):
    """The upstream answered in a way that isn't its protocol."""


class TokenStream(StreamingResponse):
    """A stream of server-sent events that closes its generator.

    Starlette leaves the generator of a response that was cut short while sending to the garbage collector, so
    its `finally` would run at any time, or never.
    """

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            # For proxies: neither keep nor collect the tokens.
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


def sse(data: dict[str, Any], event: str | None = None) -> bytes:
    """Write one server-sent event."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


def take(answer: Answer, line: str, max_tokens: int) -> None:
    """Take one line of the upstream's stream into the answer.

    Raises:
        ValidationError: an event that is no OpenAI chunk.
    """
    if answer.finished or not line.startswith("data:"):
        return
    data = line.removeprefix("data:").strip()
    if data == "[DONE]":
        answer.finished = True
        return
    for choice in Chunk.model_validate_json(data).choices:
        if choice.delta.content and len(answer.tokens) == max_tokens:
            # It sends more than was asked for, so what was asked for is complete.
            answer.finished = True
        elif choice.delta.content:
            answer.tokens.append(choice.delta.content)


async def ask(
    client: httpx.AsyncClient, settings: Settings, question: Question, answer: Answer
) -> AsyncGenerator[list[str]]:
    """Ask the upstream, take what it says into the answer, and give the tokens that arrived together.

    Closing this generator closes the connection, and so the upstream stops generating.

    Raises:
        HTTPError, UpstreamError, ValidationError: the upstream didn't answer to the end.
    """
    headers = {"X-Request-Id": answer.id}
    if settings.upstream_api_key is not None:
        headers["Authorization"] = f"Bearer {settings.upstream_api_key.get_secret_value()}"
    request = client.stream(
        "POST",
        f"{settings.upstream_url}/v1/chat/completions",
        json={
            "model": settings.upstream_model,
            "messages": [{"role": "user", "content": question.prompt}],
            "max_tokens": question.max_tokens,
            "stream": True,
        },
        headers=headers,
        timeout=httpx.Timeout(
            connect=settings.http_connect_timeout,
            read=settings.upstream_read_timeout,
            write=settings.http_write_timeout,
            pool=settings.http_pool_timeout,
        ),
    )
    async with request as response:
        response.raise_for_status()
        rest = ""
        async for piece in response.aiter_text():
            *lines, rest = (rest + piece).split("\n")
            # All that has arrived is in the answer before the client may leave at the yield.
            known = len(answer.tokens)
            for line in lines:
                take(answer, line, question.max_tokens)
            if fresh := answer.tokens[known:]:
                yield fresh
            if answer.finished:
                return
            if len(rest) > MAX_EVENT:
                break
    raise UpstreamError("no end of the answer, or an event without an end")


async def charge(client: httpx.AsyncClient, settings: Settings, answer: Answer) -> None:
    """Charge for an answer's tokens, in several attempts if need be.

    Raises:
        HTTPError: the partner refused, or didn't take the charge in the last attempt either.
    """
    for attempt in range(1, settings.charge_attempts + 1):
        try:
            response = await client.post(
                f"{settings.partner_url}/charges",
                json={"completion": answer.id, "user": answer.user, "tokens": len(answer.tokens)},
                # The partner takes the charge once, however often it is asked.
                headers={"Idempotency-Key": answer.id},
                timeout=settings.charge_timeout,
            )
            response.raise_for_status()
        except httpx.HTTPError as error:
            refused = isinstance(error, httpx.HTTPStatusError) and error.response.is_client_error
            if refused or attempt == settings.charge_attempts:
                raise
            await asyncio.sleep(RETRY_PAUSE * 2 ** (attempt - 1))
        else:
            return


def completions_router(outlive: Outlive, settings: Settings) -> APIRouter:
    """Build the route of the completions and declare its tasks."""
    router = APIRouter()

    @outlive.task(
        timeout=settings.save_timeout, max_wait=settings.max_wait, max_running=settings.database_pool
    )
    async def save_answer(store: Store, answer: Answer) -> None:
        await store.save_answer(answer)

    @outlive.task(
        timeout=settings.bill_timeout, max_wait=settings.max_wait, max_running=settings.partner_max_running
    )
    async def bill_tokens(store: Store, client: httpx.AsyncClient, answer: Answer, saved: Run[None]) -> None:
        # What isn't saved isn't billed.
        await saved
        if answer.tokens:
            await charge(client, settings, answer)
        await store.mark_charged(answer.id)

    async def generate(
        store: Store, client: httpx.AsyncClient, question: Question, answer: Answer
    ) -> AsyncGenerator[bytes]:
        try:
            yield sse({"id": answer.id}, "start")
            async with aclosing(ask(client, settings, question, answer)) as pieces:
                async for fresh in pieces:
                    yield b"".join(sse({"token": token}) for token in fresh)
            ending = sse({"tokens": len(answer.tokens)}, "done")
        except (httpx.HTTPError, UpstreamError, ValidationError) as error:
            # By its type alone: the message of a ValidationError repeats the answer.
            logger.warning("the upstream failed: %s", type(error).__name__)
            ending = sse({"error": "upstream"}, "error")
        finally:
            saved = save_answer.submit(store, answer)
            bill_tokens.submit(store, client, answer, saved)
            # Whoever is told that the answer is done is told of a saved one. When the client has left, this wait is
            # cancelled: that is counted as absorbed and raised on, and the two runs go on.
            await saved
        yield ending

    class BoundedQuestion(Question):
        prompt: Annotated[str, Field(max_length=settings.max_prompt)]
        max_tokens: int = Field(default=min(TOKENS, settings.max_tokens), ge=1, le=settings.max_tokens)

    @router.post("/completions", response_class=StreamingResponse, responses=RESPONSES)
    async def complete(request: Request, question: BoundedQuestion) -> TokenStream:
        answer = Answer(uuid4().hex, question.user)
        state = request.app.state
        return TokenStream(generate(state.store, state.client, question, answer))

    return router
