"""Errors in Anthropic's shape."""

from typing import Any, Literal

import orjson
from pydantic import BaseModel

from glmcore.serve.caller import CALLER
from glmcore.serve.errors import ServeError

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


def error_body(error: ServeError) -> tuple[int, dict[str, Any]]:
    """Status and body of an answer that is no success."""
    caller = CALLER.get()
    kind = TYPES[error.kind]
    status = OVERLOADED_STATUS if kind == "overloaded_error" else error.status
    detail = {"type": kind, "message": error.message}
    return status, {"type": "error", "error": detail, "request_id": caller.request_id if caller else None}


def error_event(error: ServeError) -> bytes:
    """What ends a stream that fails."""
    return named_event(error_body(error)[1])


def named_event(event: dict[str, Any]) -> bytes:
    """An event under the name of its type, encoded."""
    return b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"
