"""What any request can be refused with, and how it is told what is wrong with it."""

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

TEXT: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
NO_HTTP = "No HTTP, or a head of more than `MAX_HEAD` bytes."
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": NO_HTTP, "content": TEXT},
    413: {"description": "The body is too large.", "content": TEXT},
    503: {
        "description": "`MAX_CONNECTIONS` are open already.",
        "content": TEXT,
        "headers": {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}},
        },
    },
}
"""Of every route, for the OpenAPI document."""

NO_JSON: dict[int | str, dict[str, Any]] = {
    400: {
        "description": f"The body can't be read as JSON. {NO_HTTP}",
        "content": TEXT
        | {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"detail": {"type": "string"}},
                    "required": ["detail"],
                }
            }
        },
    },
}
"""Of the routes that read JSON, besides."""


async def refuse(_request: Request, error: Exception) -> JSONResponse:
    """Answer 422 and tell what is wrong where, but not repeat it.

    FastAPI's own handler does, and fails with a 500 at values that JSON can't hold: NaN, half a surrogate pair.
    """
    assert isinstance(error, RequestValidationError)
    wrong = [{key: details[key] for key in ("type", "loc", "msg")} for details in error.errors()]
    return JSONResponse({"detail": wrong}, 422)
