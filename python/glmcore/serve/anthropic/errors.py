"""Errors in Anthropic's shape."""

from typing import Any, Literal

import orjson
from pydantic import BaseModel
from starlette.responses import Response

from glmcore.serve.caller import CALLER
from glmcore.serve.errors import ServeError
from glmcore.serve.sse import json_answer

TYPES = {
    "invalid_request": "invalid_request_error",
    "authentication": "authentication_error",
    "permission": "permission_error",
    "not_found": "not_found_error",
    "too_large": "request_too_large",
    "rate_limit": "rate_limit_error",
    "overloaded": "overloaded_error",
    "timeout": "timeout_error",
    "unavailable": "overloaded_error",
    "internal": "api_error",
}
OVERLOADED_STATUS = 529
"""What Anthropic's clients know as "try again soon"; it is no status of HTTP's own."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: str | None


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in (
        (400, "The request is wrong; the message names the field"),
        (401, "No API key, or a wrong one"),
        (403, "Sent by a page of another site"),
        (404, "No such model"),
        (408, "The body did not arrive in time"),
        (413, "The body is too large"),
        (429, "Rate limit reached; see Retry-After"),
        (500, "The server failed"),
        (504, "The request took too long"),
        (OVERLOADED_STATUS, "The server is full or stopping; see Retry-After"),
    )
}
"""What every path of the dialect may answer, for the OpenAPI document."""


def error_body(error: ServeError) -> dict[str, Any]:
    """The body of an answer that is no success."""
    caller = CALLER.get()
    detail = {"type": TYPES[error.kind], "message": error.message}
    return {"type": "error", "error": detail, "request_id": caller.request_id if caller else None}


def error_response(error: ServeError) -> Response:
    """The response to a request that fails before its answer has begun."""
    status = OVERLOADED_STATUS if TYPES[error.kind] == "overloaded_error" else error.status
    return json_answer(error_body(error), status)


def error_event(error: ServeError) -> bytes:
    """What ends a stream that fails."""
    return named_event(error_body(error))


def named_event(event: dict[str, Any]) -> bytes:
    """An event under the name of its type, encoded."""
    return b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"
