"""POST /v1/responses."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from glmcore.serve.config import ServeConfig
from glmcore.serve.conversations import Answers, Conversations
from glmcore.serve.errors import ServeError, bad_request
from glmcore.serve.openai.errors import RESPONSES
from glmcore.serve.openai.models import check_model
from glmcore.serve.responses.request import empty_response, sampling_of, seals_reasoning, tells_logprobs, turn_of
from glmcore.serve.responses.schema import ResponsesRequest
from glmcore.serve.responses.stream import ResponseStream
from glmcore.serve.responses.tools import namespaced
from glmcore.serve.sse import EventStream, json_answer
from glmcore.serve.whole import whole_answer


def router(conversations: Conversations, config: ServeConfig) -> APIRouter:
    """The path of responses."""
    routes = APIRouter(tags=["OpenAI"])
    limits = config.limits
    streamed = {
        200: {"content": {"text/event-stream": {}}, "description": "The response, or with stream=true its events"}
    }

    @routes.post("/v1/responses", responses={**RESPONSES, **streamed}, summary="Answer a list of items")
    async def responses(request: Request, body: ResponsesRequest) -> Response:
        model = check_model(config, body.model)
        response = empty_response(body, model, conversations.sampling)
        _check_can_be_told(response)
        answers = conversations.run(
            turn_of(body, sampling_of(body, conversations.sampling), thinks_by_default=config.thinking)
        )
        stream = ResponseStream(
            response,
            conversations.tokenizer if tells_logprobs(body) else None,
            namespaces=namespaced(body.tools),
            seals_reasoning=seals_reasoning(body),
        )
        if body.stream:
            return EventStream(
                _chunks(stream, answers),
                answers.aclose,
                lambda error: b"".join(map(_encoded, stream.fail(_code(error), error.message))),
                limit_s=limits.request_timeout_s,
                heartbeat_s=limits.heartbeat_s,
            )
        told = await whole_answer(request, answers, limits.request_timeout_s)
        return json_answer([event for each in told for event in stream.feed(each)][-1]["response"])

    return routes


async def _chunks(stream: ResponseStream, answers: Answers) -> AsyncIterator[bytes]:
    yield b"".join(map(_encoded, stream.start()))
    async for told in answers:
        yield b"".join(map(_encoded, stream.feed(told)))


def _encoded(event: dict[str, Any]) -> bytes:
    return b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


def _check_can_be_told(response: dict[str, Any]) -> None:
    """Check that what the response repeats of the request can be written.

    Raises:
        ServeError: It has half of a surrogate pair, or an integer of more than 64 bits.
    """
    try:
        orjson.dumps(response)
    except TypeError as error:
        raise bad_request(f"the request holds what JSON cannot carry: {error}") from None


def _code(error: ServeError) -> str:
    """The API's own codes for what fails while an answer is made."""
    return "rate_limit_exceeded" if error.kind in ("overloaded", "rate_limit") else "server_error"
