"""Errors in OpenAI's shape."""

from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from glmcore.serve.errors import ServeError
from glmcore.serve.sse import data_event, json_answer

TYPES = {
    "invalid_request": "invalid_request_error",
    "authentication": "authentication_error",
    "permission": "permission_error",
    "not_found": "not_found_error",
    "too_large": "invalid_request_error",
    "rate_limit": "rate_limit_error",
    "overloaded": "rate_limit_error",
    "timeout": "timeout_error",
    "unavailable": "server_error",
    "internal": "server_error",
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in (
        (400, "The request is wrong; `param` names the field"),
        (401, "No API key, or a wrong one"),
        (403, "Sent by a page of another site"),
        (404, "No such model"),
        (408, "The body did not arrive in time"),
        (413, "The body is too large"),
        (429, "Rate limit reached or server full; see Retry-After"),
        (500, "The server failed"),
        (503, "The server is stopping"),
        (504, "The request took too long"),
    )
}
"""What every path of the dialect may answer, for the OpenAPI document."""


def error_body(error: ServeError) -> dict[str, Any]:
    """The body of an answer that is no success."""
    detail = {"message": error.message, "type": TYPES[error.kind], "param": error.param, "code": error.code}
    return {"error": detail}


def error_response(error: ServeError) -> Response:
    """The response to a request that fails before its answer has begun."""
    return json_answer(error_body(error), error.status)


def error_chunk(error: ServeError) -> bytes:
    """What ends a stream that fails."""
    return data_event(error_body(error))
