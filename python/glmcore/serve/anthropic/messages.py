"""POST /v1/messages and /v1/messages/count_tokens."""

from collections.abc import AsyncIterator
from itertools import chain

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from glmcore.engine.sampling import SamplingParams
from glmcore.serve.anthropic.errors import RESPONSES, error_event, named_event
from glmcore.serve.anthropic.request import hides_thinking, sampling_of, turn_of
from glmcore.serve.anthropic.schema import CountRequest, MessagesRequest
from glmcore.serve.anthropic.stream import PING, MessageStream, whole_message
from glmcore.serve.config import ServeConfig
from glmcore.serve.conversations import Answers, Conversations
from glmcore.serve.openai.models import check_model
from glmcore.serve.sse import EventStream, json_answer
from glmcore.serve.whole import whole_answer


class TokenCount(BaseModel):
    """Length of a prompt."""

    input_tokens: int


def router(conversations: Conversations, config: ServeConfig) -> APIRouter:
    """The paths of the dialect."""
    routes = APIRouter(tags=["Anthropic"])
    limits = config.limits
    streamed = {
        200: {"content": {"text/event-stream": {}}, "description": "The message, or with stream=true its events"}
    }

    @routes.post("/v1/messages", responses={**RESPONSES, **streamed}, summary="Answer a conversation")
    async def messages(request: Request, body: MessagesRequest) -> Response:
        model = check_model(config, body.model)
        answers = conversations.run(turn_of(body, sampling_of(body, conversations.sampling)))
        shows_thinking = not hides_thinking(body)
        stream = MessageStream(model, answers.prompt_tokens, body.max_tokens, shows_thinking=shows_thinking)
        if body.stream:
            return EventStream(
                _chunks(stream, answers),
                answers.aclose,
                error_event,
                limit_s=limits.request_timeout_s,
                heartbeat_s=limits.heartbeat_s,
                heartbeat=named_event(PING),
            )
        told = await whole_answer(request, answers, limits.request_timeout_s)
        return json_answer(whole_message(chain(stream.start(), *map(stream.feed, told))))

    @routes.post("/v1/messages/count_tokens", responses=RESPONSES, summary="Count the tokens of a prompt")
    async def count_tokens(body: CountRequest) -> TokenCount:
        check_model(config, body.model)
        return TokenCount(input_tokens=len(conversations.prompt_ids(turn_of(body, SamplingParams()))))

    return routes


async def _chunks(stream: MessageStream, answers: Answers) -> AsyncIterator[bytes]:
    yield b"".join(map(named_event, stream.start()))
    async for told in answers:
        encoded = b"".join(map(named_event, stream.feed(told)))
        if encoded:
            yield encoded
