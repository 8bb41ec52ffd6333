import csv
import io
from typing import Any

import httpx
import pytest

from outlive_service.records import Answer, Transcript

pytestmark = pytest.mark.anyio


async def fill(service: Any) -> None:
    for session in ("s1", "s2"):
        await service.store.save_session(Transcript(session, "lobby", "ann", ["x" * n for n in range(10)]))
    await service.store.save_session(Transcript("other", "lobby", "bob", ["x"]))
    await service.store.save_answer(Answer("a1", "ann", ["one ", "two "], finished=True))


async def test_a_report_has_every_line_and_answer_of_its_user(service: Any) -> None:
    await fill(service)
    service.start(export_page=3)
    async with httpx.AsyncClient() as client:
        response = await client.get(f"{service.url}/exports/usage.csv", params={"user": "ann"})
    assert response.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [(row["kind"], row["id"], row["n"], row["size"]) for row in rows] == [
        *(("line", session, str(n), str(n)) for session in ("s1", "s2") for n in range(10)),
        ("answer", "a1", "", "2"),
    ]
    assert (rows[-1]["finished"], rows[-1]["bill"]) == ("True", "due")
    await service.ended(release_export=1)
    (lease,) = await service.store.exports()
    assert (lease.id, lease.user, lease.rows_sent) == (response.headers["x-export-id"], "ann", 21)
    assert lease.released_at is not None


async def test_nothing_to_tell_is_a_heading(service: Any) -> None:
    service.start()
    async with httpx.AsyncClient() as client:
        response = await client.get(f"{service.url}/exports/usage.csv", params={"user": "nobody"})
    assert response.text.splitlines() == ["kind,id,n,size,finished,bill,at"]
    await service.ended(release_export=1)


async def test_the_lease_of_a_client_that_leaves_is_released(service: Any) -> None:
    await fill(service)
    # So long between two pages that it can only end by the client's leaving.
    service.start(export_page=4, export_page_interval=600)
    async with httpx.AsyncClient() as client:
        request = client.stream("GET", f"{service.url}/exports/usage.csv", params={"user": "ann"})
        async with request as response:
            lines = response.aiter_lines()
            for _ in range(5):
                await anext(lines)
            (lease,) = await service.store.exports()
            assert lease.released_at is None
    await service.ended(release_export=1)
    (lease,) = await service.store.exports()
    assert lease.rows_sent == 4
    assert lease.released_at is not None
    assert service.runs("release_export") == {"completed": 1}


async def test_a_stop_releases_the_lease(service: Any) -> None:
    await fill(service)
    service.start(graceful=1, export_page=4, export_page_interval=600)
    async with httpx.AsyncClient() as client:
        request = client.stream("GET", f"{service.url}/exports/usage.csv", params={"user": "ann"})
        async with request as response:
            await anext(response.aiter_lines())
            await service.stop()
    (lease,) = await service.store.exports()
    assert lease.released_at is not None


@pytest.mark.parametrize("user", ["", "x" * 65])
async def test_names_out_of_bounds_are_refused(service: Any, user: str) -> None:
    service.start()
    async with httpx.AsyncClient() as client:
        response = await client.get(f"{service.url}/exports/usage.csv", params={"user": user})
    assert response.status_code == 422
    assert await service.store.exports() == []
