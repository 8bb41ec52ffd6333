"""A report that streams page by page, and the lease that must be given back however the connection ends."""

import asyncio
import csv
import io
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from uuid import uuid4

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from outlive import AfterDisconnect, Outlive
from outlive_service.records import UsedAnswer, UsedLine
from outlive_service.settings import Settings
from outlive_service.store import Store

HEADER = ("kind", "id", "n", "size", "finished", "bill", "at")
"""Of a line, `size` is characters; of an answer, tokens. No text: a usage report is no place for it."""

RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The report.",
        "content": {"text/csv": {"schema": {"type": "string"}}},
        "headers": {"X-Export-Id": {"description": "The id of its lease.", "schema": {"type": "string"}}},
    }
}
"""For the OpenAPI document."""

Used = TypeVar("Used", UsedLine, UsedAnswer)
ReadPage = Callable[[str, Used | None, int], Awaitable[list[Used]]]


@dataclass(slots=True)
class Lease:
    """An export under way."""

    id: str
    rows_sent: int = 0


def row(used: UsedLine | UsedAnswer) -> tuple[object, ...]:
    """Write a line or an answer as a row below HEADER."""
    if isinstance(used, UsedLine):
        return "line", used.session, used.n, used.characters, "", "", used.at.isoformat()
    return "answer", used.id, "", used.tokens, used.finished, used.bill, used.at.isoformat()


def write_csv(rows: Sequence[tuple[object, ...]]) -> str:
    """Write rows as CSV."""
    page = io.StringIO()
    csv.writer(page).writerows(rows)
    return page.getvalue()


def exports_router(outlive: Outlive, settings: Settings) -> APIRouter:
    """Build the route of the exports and declare its task."""
    router = APIRouter()

    @outlive.task(
        timeout=settings.release_timeout, max_wait=settings.max_wait, max_running=settings.database_pool
    )
    async def release_export(store: Store, lease: Lease) -> None:
        await store.release_export(lease.id, lease.rows_sent)

    async def pages(read: ReadPage[Used], user: str) -> AsyncGenerator[list[Used]]:
        last = None
        while True:
            # A query that is cancelled in the middle costs the pool a connection.
            async with outlive.scope("read_page", timeout=settings.page_timeout):
                page = await read(user, last, settings.export_page)
            if not page:
                return
            yield page
            last = page[-1]
            await asyncio.sleep(settings.export_page_interval)

    async def report(store: Store, user: str, lease: Lease) -> AsyncGenerator[str]:
        yield write_csv([HEADER])
        for found in (pages(store.used_lines, user), pages(store.used_answers, user)):
            async for page in found:
                yield write_csv([row(used) for used in page])
                # Reached only when the page has been handed to the server.
                lease.rows_sent += len(page)

    @router.get("/exports/usage.csv", response_class=StreamingResponse, responses=RESPONSES)
    async def export(
        request: Request, user: Annotated[str, Query(min_length=1, max_length=64)], after: AfterDisconnect
    ) -> StreamingResponse:
        store: Store = request.app.state.store
        lease = Lease(uuid4().hex)
        # Before the lease is opened, so that there is no moment in which it would stay open for ever.
        after.add_task(release_export, store, lease)
        await store.open_export(lease.id, user)
        return StreamingResponse(
            report(store, user, lease),
            media_type="text/csv",
            headers={
                "X-Export-Id": lease.id,
                "Cache-Control": "no-store",
                "Content-Disposition": 'attachment; filename="usage.csv"',
            },
        )

    return router
