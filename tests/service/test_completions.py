import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import nullcontext
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.types import Message

from outlive_service.completions import TokenStream, charge
from outlive_service.records import Answer, Bill
from outlive_service.settings import Settings
from outlive_service.store import Store

pytestmark = pytest.mark.anyio

Event = tuple[str, Any]


def events(text: str) -> list[Event]:
    """Server-sent events as pairs of name and data."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields.get("event", "token"), json.loads(fields["data"])))
    return found


def question(**more: object) -> dict[str, object]:
    return {"user": "ann", "prompt": "why?", **more}


async def ask(service: Any, **more: object) -> list[Event]:
    async with httpx.AsyncClient(timeout=15) as client:
        response = await client.post(f"{service.url}/completions", json=question(**more))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return events(response.text)


def chunk(content: str | None) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': content}}]})}\n\n"


class Upstream:
    """An upstream that sends what it is told to, and notes what it is asked."""

    def __init__(self, pieces: Callable[[], AsyncIterator[str]]) -> None:
        self.app = FastAPI()
        self.requests: list[dict[str, Any]] = []
        self.sent = 0
        self.left = False

        @self.app.post("/v1/chat/completions")
        async def complete(request: Request) -> StreamingResponse:
            self.requests.append({"headers": dict(request.headers), "body": await request.json()})
            return StreamingResponse(self._send(pieces()), media_type="text/event-stream")

    async def _send(self, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        try:
            async for piece in pieces:
                self.sent += 1
                yield piece
        finally:
            self.left = True


async def all_of(pieces: Iterable[str]) -> AsyncIterator[str]:
    for piece in pieces:
        yield piece


async def test_a_whole_answer_is_streamed_saved_and_charged(service: Any) -> None:
    service.start()
    (start, *tokens, done) = await ask(service, max_tokens=7)
    assert start[0] == "start"
    assert done == ("done", {"tokens": 7})
    assert [name for name, _ in tokens] == ["token"] * 7
    await service.ended(save_answer=1, bill_tokens=1)
    (saved,) = await service.store.answers()
    assert (saved.id, saved.user, saved.tokens, saved.text_tokens) == (start[1]["id"], "ann", 7, 7)
    assert saved.text == "".join(data["token"] for _, data in tokens)
    assert (saved.finished, saved.bill) == (True, Bill.CHARGED)
    records = await service.records()
    assert records["charges"] == {saved.id: {"tokens": 7, "attempts": 1}}
    assert records["generations"] == {saved.id: {"tokens": 7, "finished": True}}
    assert service.runs("bill_tokens") == {"completed": 1}


async def test_a_client_that_leaves_stops_the_upstream_and_pays_for_what_came(service: Any) -> None:
    service.start()
    request = {"json": question(max_tokens=1_000)}
    received = 0
    async with (
        httpx.AsyncClient() as client,
        client.stream("POST", f"{service.url}/completions", **request) as response,  # type: ignore[arg-type]
    ):
        async for line in response.aiter_lines():
            received += line.startswith('data: {"token"')
            if received == 10:
                break
    await service.ended(save_answer=1, bill_tokens=1)
    (saved,) = await service.store.answers()
    assert 10 <= saved.tokens < 1_000
    assert saved.tokens == saved.text_tokens
    assert (saved.finished, saved.bill) == (False, Bill.CHARGED)
    records = await service.records()
    assert records["charges"] == {saved.id: {"tokens": saved.tokens, "attempts": 1}}
    generated = records["generations"][saved.id]["tokens"]
    assert saved.tokens <= generated
    # Twenty times the interval between two tokens.
    await asyncio.sleep(0.1)
    later = (await service.records())["generations"][saved.id]
    assert later["tokens"] <= generated + 2
    assert later["finished"] is False


async def test_a_client_that_stops_reading_and_vanishes_leaves_nothing_behind(
    service: Any, serve: Callable[[FastAPI], str]
) -> None:
    async def endless() -> AsyncIterator[str]:
        while True:
            # Once its caller has left, nothing else would let the server notice.
            await asyncio.sleep(0)
            yield chunk("x" * 100_000)

    upstream = Upstream(endless)
    service.start(upstream_url=serve(upstream.app))
    async with httpx.AsyncClient() as client:
        request = client.stream("POST", f"{service.url}/completions", json=question(max_tokens=1_000))
        async with request as response:
            assert response.status_code == 200
            # Once every buffer is full, the service waits in its send and the upstream in its own.
            known = -1
            async with asyncio.timeout(15):
                while known != upstream.sent:
                    known = upstream.sent
                    await asyncio.sleep(0.2)
            assert service.runs("save_answer") == {}
            assert 0 < known < 1_000
    await service.ended(save_answer=1, bill_tokens=1)
    (saved,) = await service.store.answers()
    assert 0 < saved.tokens <= upstream.sent
    assert saved.text == "x" * 100_000 * saved.tokens
    assert (await service.records())["charges"] == {saved.id: {"tokens": saved.tokens, "attempts": 1}}

    async def left() -> bool:
        return upstream.left

    await service.until(left)


async def test_a_stream_cut_short_while_sending_has_cleaned_up_when_it_returns() -> None:
    cleaned_up = False
    sending = asyncio.Event()

    async def events() -> AsyncGenerator[bytes]:
        nonlocal cleaned_up
        try:
            while True:
                yield b"x"
        finally:
            cleaned_up = True

    async def receive() -> Message:
        await sending.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            sending.set()
            await asyncio.Event().wait()

    # Held here, so that no garbage collector does it.
    generator = events()
    async with asyncio.timeout(10):
        await TokenStream(generator)({"type": "http"}, receive, send)
    assert cleaned_up


@pytest.mark.parametrize("graceful", [None, 1])
async def test_a_stop_in_mid_answer_saves_and_charges_it(service: Any, graceful: int | None) -> None:
    service.start(graceful=graceful)
    async with httpx.AsyncClient(timeout=15) as client:
        request = client.stream(
            "POST", f"{service.url}/completions", json=question(max_tokens=1_000 if graceful else 100)
        )
        async with request as response:
            lines = response.aiter_lines()
            await anext(lines)
            stop = asyncio.create_task(service.stop())
            with pytest.raises(httpx.HTTPError) if graceful else nullcontext():
                async for _ in lines:
                    pass
            await stop
    (saved,) = await service.store.answers()
    # Without a graceful time-out, uvicorn waits for the answer's end.
    assert saved.finished is (graceful is None)
    assert saved.bill is Bill.CHARGED
    assert (await service.records())["charges"] == {saved.id: {"tokens": saved.tokens, "attempts": 1}}


@pytest.mark.parametrize(
    ("pieces", "tokens", "last"),
    [
        ([chunk("a "), chunk("b "), "data: [DONE]\n\n"], ["a ", "b "], "done"),
        ([chunk(None), chunk(""), chunk("a "), 'data: {"choices":[]}\n\n', "data: [DONE]\n\n"], ["a "], "done"),
        ([chunk("a ").replace("\n", "\r\n"), ": ping\r\n\r\n", "data: [DONE]\r\n\r\n"], ["a "], "done"),
        ([chunk("a ")[:20], chunk("a ")[20:] + chunk("b ")[:9], chunk("b ")[9:], "data:[DONE]\n"],
         ["a ", "b "], "done"),
        ([chunk("a ") + chunk("b ") + "data: [DONE]\n\n" + chunk("after")], ["a ", "b "], "done"),
        ([chunk("a ")], ["a "], "error"),
        ([chunk("a "), chunk("\ud83d"), "data: [DONE]\n\n"], ["a "], "error"),
        ([chunk("a ") + chunk("b ") + "data: {nonsense\n\n"], ["a ", "b "], "error"),
        ([chunk("a "), 'data: {"choices": 7}\n\n'], ["a "], "error"),
        ([chunk("a "), "x" * 1_100_000, "data: [DONE]\n\n"], ["a "], "error"),
        ([chunk(f"{n} ") for n in range(20)], [f"{n} " for n in range(9)], "done"),
    ],
    ids=["whole", "empty", "crlf", "pieces", "together", "short", "half", "nonsense", "shape", "endless", "more"],
)  # fmt: skip
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_exactly_what_the_upstream_sent_is_counted(
    service: Any, serve: Callable[[FastAPI], str], pieces: list[str], tokens: list[str], last: str
) -> None:
    upstream = Upstream(lambda: all_of(pieces))
    service.start(upstream_url=serve(upstream.app))
    (start, *streamed, end) = await ask(service, max_tokens=9)
    assert end[0] == last
    if last == "done":
        assert [data["token"] for _, data in streamed] == tokens
    await service.ended(save_answer=1, bill_tokens=1)
    (saved,) = await service.store.answers()
    assert saved.text == "".join(tokens)
    assert (saved.tokens, saved.finished) == (len(tokens), last == "done")
    charges = (await service.records())["charges"]
    assert charges == {start[1]["id"]: {"tokens": len(tokens), "attempts": 1}}


async def test_an_upstream_that_refuses_costs_nothing(service: Any) -> None:
    await service.faults(completions={"error_rate": 1})
    service.start()
    (start, error) = await ask(service)
    assert error == ("error", {"error": "upstream"})
    await service.ended(save_answer=1, bill_tokens=1)
    (saved,) = await service.store.answers()
    assert (saved.id, saved.tokens, saved.finished, saved.bill) == (start[1]["id"], 0, False, Bill.CHARGED)
    assert (await service.records())["charge_attempts"] == []


async def test_an_upstream_that_is_not_there_is_told(service: Any) -> None:
    service.start(upstream_url="http://127.0.0.1:9")
    assert (await ask(service))[-1] == ("error", {"error": "upstream"})


async def test_the_upstream_gets_the_key_the_model_and_the_id(
    service: Any, serve: Callable[[FastAPI], str]
) -> None:
    upstream = Upstream(lambda: all_of([chunk("a "), "data: [DONE]\n\n"]))
    service.start(
        upstream_url=serve(upstream.app) + "/", upstream_api_key="hunter2", upstream_model="a-model"
    )
    (start, *_) = await ask(service, max_tokens=3)
    (asked,) = upstream.requests
    assert asked["headers"]["authorization"] == "Bearer hunter2"
    assert asked["headers"]["x-request-id"] == start[1]["id"]
    assert asked["body"] == {
        "model": "a-model",
        "messages": [{"role": "user", "content": "why?"}],
        "max_tokens": 3,
        "stream": True,
    }


async def test_an_unpaid_bill_stays_due(service: Any) -> None:
    await service.faults(charges={"error_rate": 1})
    service.start(charge_attempts=2)
    await ask(service, max_tokens=3)
    await service.ended(save_answer=1, bill_tokens=1)
    (saved,) = await service.store.answers()
    assert saved.bill is Bill.DUE
    assert service.runs("bill_tokens") == {"failed": 1}
    attempts = (await service.records())["charge_attempts"]
    assert attempts == [{"key": saved.id, "fault": "error"}] * 2


async def test_an_unsaved_answer_is_not_billed(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def break_down(store: Store, answer: Answer) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Store, "save_answer", break_down)
    service.start()
    # An answer that couldn't be saved doesn't end as if all were well.
    with pytest.raises(httpx.RemoteProtocolError):
        await ask(service, max_tokens=3)
    await service.ended(save_answer=1, bill_tokens=1)
    assert service.runs("save_answer") == {"failed": 1}
    assert service.runs("bill_tokens") == {"failed": 1}
    assert (await service.records())["charge_attempts"] == []


@pytest.mark.parametrize(
    "wrong",
    [{"user": ""}, {"user": "x" * 65}, {"max_tokens": 0}, {"max_tokens": 101}, {"prompt": "x" * 1_001}],
)
async def test_what_is_out_of_bounds_is_refused(service: Any, wrong: dict[str, object]) -> None:
    service.start(max_tokens=100, max_prompt=1_000)
    async with httpx.AsyncClient() as client:
        response = await client.post(f"{service.url}/completions", json=question(**wrong))
    assert response.status_code == 422
    await service.stop()
    assert service.runs("save_answer") == {}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (rb'{"user": "\ud800 s3cret", "prompt": "why?"}', 422),
        (rb'{"user": "ann", "prompt": "\ud800 s3cret"}', 422),
        (b'{"user": "ann", "prompt": "s3cret", "max_tokens": NaN}', 422),
        (b'{"user": "ann", "prompt": "s3cret", "max_tokens": -1e999}', 422),
        (b'{"user": "ann", "prompt": ["s3cret"]}', 422),
        (b'{"user": "ann", "prompt": "s3cret', 422),
        (b'{"user": "ann", "prompt": "s3cret\xff"}', 400),
        (b'{"user": "ann", "prompt": "s3cret", "max_tokens": ' + b"9" * 5_000 + b"}", 400),
        (b"[" * 100_000, 400),
    ],
    ids=["half a pair", "half a pair asked", "NaN", "infinite", "a list", "cut", "no UTF-8", "a long number", "deep"],
)  # fmt: skip
async def test_what_cannot_be_read_is_refused_and_not_repeated(
    service: Any, body: bytes, status: int
) -> None:
    service.start()
    async with httpx.AsyncClient() as client:
        response = await client.post(
            f"{service.url}/completions", content=body, headers={"content-type": "application/json"}
        )
    assert response.status_code == status, response.text
    assert response.json()["detail"]
    assert "s3cret" not in response.text
    await service.stop()
    assert service.runs("save_answer") == {}


async def test_who_does_not_say_how_much_gets_no_more_than_is_allowed(service: Any) -> None:
    service.start(max_tokens=10)
    assert (await ask(service))[-1] == ("done", {"tokens": 10})


@pytest.mark.parametrize(
    ("answers", "requests", "charged"),
    [([200], 1, True), ([503, 503, 200], 3, True), ([503] * 9, 3, False), ([409, 200], 1, False)],
)
async def test_a_charge_is_tried_again_as_long_as_that_makes_sense(
    monkeypatch: pytest.MonkeyPatch, answers: list[int], requests: int, charged: bool
) -> None:
    monkeypatch.setattr("outlive_service.completions.RETRY_PAUSE", 0.0)
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(answers[len(asked) - 1])

    settings = Settings(charge_attempts=3)
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        bill = charge(client, settings, Answer("a1", "ann", ["one "]))
        if charged:
            await bill
        else:
            with pytest.raises(httpx.HTTPStatusError):
                await bill
    assert len(asked) == requests
    assert {request.headers["Idempotency-Key"] for request in asked} == {"a1"}
