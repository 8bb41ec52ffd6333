import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from outlive_service.partner import create_partner
from outlive_service.settings import PartnerSettings

pytestmark = pytest.mark.anyio

NOTICE = {"session": "s1", "room": "r", "user": "ann", "lines": 2}
CHARGE = {"completion": "c1", "user": "ann", "tokens": 3}


def key(name: str) -> dict[str, str]:
    return {"Idempotency-Key": name}


def client_of(**settings: object) -> httpx.AsyncClient:
    app = create_partner(PartnerSettings.model_validate(settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://partner")


async def records(client: httpx.AsyncClient) -> Any:
    return (await client.get("/records")).json()


async def test_what_cannot_be_read_is_refused_and_not_repeated() -> None:
    async with client_of() as client:
        for wrong in (b"NaN", b'"\\ud800"'):
            body = b'{"session": "s1", "room": "r", "user": "ann", "lines": ' + wrong + b"}"
            headers = {"content-type": "application/json", **key("s1")}
            response = await client.post("/notices", content=body, headers=headers)
            assert response.status_code == 422, response.text
            assert "input" not in response.json()["detail"][0]


async def test_every_notice_that_arrives_is_noted() -> None:
    async with client_of() as client:
        for name in ("s1", "s2", "s1"):
            assert (await client.post("/notices", json=NOTICE, headers=key(name))).status_code == 200
        assert (await records(client))["notices"] == [
            {"key": name, "fault": None} for name in ("s1", "s2", "s1")
        ]


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/notices", NOTICE, {}),
        ("/notices", {**NOTICE, "lines": -1}, key("s1")),
        ("/charges", CHARGE, {}),
        ("/charges", {"tokens": 3}, key("c1")),
        ("/charges", CHARGE, key("x" * 201)),
    ],
)
async def test_what_makes_no_sense_is_refused_and_not_noted(
    path: str, body: dict[str, object], headers: dict[str, str]
) -> None:
    async with client_of() as client:
        assert (await client.post(path, json=body, headers=headers)).status_code == 422
        assert not any((await records(client)).values())


async def test_a_charge_is_taken_once_however_often_it_is_asked() -> None:
    async with client_of() as client:
        for _ in range(3):
            response = await client.post("/charges", json=CHARGE, headers=key("c1"))
            assert response.json() == {"charged": 3}
        other = await client.post("/charges", json={**CHARGE, "tokens": 4}, headers=key("c1"))
        assert other.status_code == 409
        assert (await records(client))["charges"] == {"c1": {"tokens": 3, "attempts": 4}}


async def test_errors_come_as_often_as_planned_and_repeatably() -> None:
    async def statuses(seed: int) -> list[int]:
        async with client_of(seed=seed, charges_error_rate=0.3) as client:
            answers = [
                (await client.post("/charges", json=CHARGE, headers=key(f"c{n}"))).status_code
                for n in range(200)
            ]
            noted = await records(client)
            faults = [attempt["fault"] for attempt in noted["charge_attempts"]]
            assert faults == ["error" if status == 503 else None for status in answers]
            assert len(noted["charges"]) == answers.count(200)
            return answers

    first = await statuses(1)
    assert 40 < first.count(503) < 80
    assert first == await statuses(1)
    assert first != await statuses(2)


async def test_faults_are_read_and_replaced_as_a_whole() -> None:
    async with client_of(notices_error_rate=0.25, token_interval=0.5) as client:
        assert (await client.get("/faults")).json() == {
            "notices": {"latency": 0.0, "error_rate": 0.25, "hang_rate": 0.0, "reset_rate": 0.0},
            "charges": {"latency": 0.0, "error_rate": 0.0, "hang_rate": 0.0, "reset_rate": 0.0},
            "completions": {
                "latency": 0.0,
                "error_rate": 0.0,
                "hang_rate": 0.0,
                "reset_rate": 0.0,
                "token_interval": 0.5,
            },
        }
        await client.put("/faults", json={"charges": {"error_rate": 1}})
        assert (await client.post("/notices", json=NOTICE, headers=key("s1"))).status_code == 200
        assert (await client.post("/charges", json=CHARGE, headers=key("c1"))).status_code == 503
        wrongs: list[dict[str, object]] = [
            {"charges": {"error_rate": 2}},
            {"charges": {"latency": -1}},
            {"payments": {}},
        ]
        for wrong in wrongs:
            assert (await client.put("/faults", json=wrong)).status_code == 422


async def test_a_full_record_says_so() -> None:
    async with client_of(max_records=2) as client:
        await client.post("/notices", json=NOTICE, headers=key("s1"))
        await client.post("/charges", json=CHARGE, headers=key("c1"))
        for path, body in (("/notices", NOTICE), ("/charges", CHARGE), ("/v1/chat/completions", {})):
            response = await client.post(path, json=body, headers=key("more"))
            assert response.status_code == 507
            assert "PARTNER_MAX_RECORDS" in response.json()["detail"]


async def test_a_hang_ends_at_its_limit() -> None:
    async with client_of(notices_hang_rate=1, hang_limit=0.01) as client:
        assert (await client.post("/notices", json=NOTICE, headers=key("s1"))).status_code == 504
        assert (await records(client))["notices"] == [{"key": "s1", "fault": "hang"}]


async def test_a_completion_streams_as_openai_does() -> None:
    async with client_of(token_interval=0) as client:
        response = await client.post(
            "/v1/chat/completions", json={"max_tokens": 5, "stream": True}, headers={"X-Request-Id": "g1"}
        )
        events = response.text.strip().split("\n\n")
        assert events.pop() == "data: [DONE]"
        tokens = [
            json.loads(event.removeprefix("data: "))["choices"][0]["delta"]["content"] for event in events
        ]
        assert len("".join(tokens).split()) == len(tokens) == 5
        assert (await records(client))["generations"] == {"g1": {"tokens": 5, "finished": True}}


@pytest.fixture
async def served(serve: Callable[[FastAPI], str]) -> AsyncIterator[httpx.AsyncClient]:
    app = create_partner(PartnerSettings(token_interval=0.01))
    async with httpx.AsyncClient(base_url=serve(app)) as client:
        yield client


async def test_generation_stops_when_the_caller_leaves(served: httpx.AsyncClient) -> None:
    request = served.stream(
        "POST", "/v1/chat/completions", json={"max_tokens": 4_000}, headers={"X-Request-Id": "g1"}
    )
    async with request as response:
        await anext(response.aiter_lines())

    known = -1
    async with asyncio.timeout(10):
        while known != (now := (await records(served))["generations"]["g1"]["tokens"]):
            known = now
            # Ten times the interval between two tokens.
            await asyncio.sleep(0.1)
    assert (await records(served))["generations"]["g1"] == {"tokens": known, "finished": False}
    assert known < 4_000


async def test_a_caller_that_leaves_a_hang_is_not_charged(served: httpx.AsyncClient) -> None:
    await served.put("/faults", json={"charges": {"hang_rate": 1}})
    with pytest.raises(httpx.ReadTimeout):
        await served.post("/charges", json=CHARGE, headers=key("c1"), timeout=0.05)
    # A slow partner is the same to a caller without patience.
    await served.put("/faults", json={"charges": {"latency": 0.5}})
    with pytest.raises(httpx.ReadTimeout):
        await served.post("/charges", json=CHARGE, headers=key("c1"), timeout=0.05)
    async with asyncio.timeout(10):
        while [a["fault"] for a in (await records(served))["charge_attempts"]] != ["hang", "hang"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await served.put("/faults", json={})
    assert (await served.post("/charges", json=CHARGE, headers=key("c1"))).json() == {"charged": 3}
    assert (await records(served))["charges"] == {"c1": {"tokens": 3, "attempts": 3}}


async def test_an_injected_reset_is_one_on_the_wire(served: httpx.AsyncClient) -> None:
    await served.put("/faults", json={"charges": {"reset_rate": 1}})
    with pytest.raises(httpx.ReadError) as caught:
        await served.post("/charges", json=CHARGE, headers=key("c1"))
    errors = []
    error: BaseException | None = caught.value
    while error is not None:
        errors.append(error)
        error = error.__cause__ or error.__context__
    assert any(isinstance(error, ConnectionResetError) for error in errors), errors
    noted = await records(served)
    assert noted["charge_attempts"] == [{"key": "c1", "fault": "reset"}]
    assert noted["charges"] == {}
