"""POST /v1/completions: text or token ids, continued."""

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from glmcore.serve.config import ServeConfig
from glmcore.serve.conversations import Conversations
from glmcore.serve.errors import bad_request
from glmcore.serve.merged import MergedStreams
from glmcore.serve.openai.errors import RESPONSES, error_chunk
from glmcore.serve.openai.models import check_model
from glmcore.serve.openai.sampling import SamplingBody, TokenId
from glmcore.serve.openai.texts import CompletionHead, TextChoice, usage_of
from glmcore.serve.sse import EventStream, data_event, json_answer
from glmcore.serve.whole import while_wanted

DONE = b"data: [DONE]\n\n"
MAX_PROMPTS = 1024
Ids = Annotated[list[TokenId], Field(min_length=1)]
Prompt = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class CompletionRequest(SamplingBody):
    """A text completion."""

    prompt: Prompt
    """Text, or token ids, or a list of either. Special tokens in text stay text; ids may be any."""
    max_tokens: Annotated[int, Field(ge=0)] = 16
    echo: bool = False
    """Give the prompt back before its continuation, with its log-probabilities if `logprobs` is set."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    """Must be `n`."""


def router(conversations: Conversations, config: ServeConfig) -> APIRouter:
    """The path of text completions."""
    routes = APIRouter(tags=["OpenAI"])
    streamed = {
        200: {"content": {"text/event-stream": {}}, "description": "The texts, or with stream=true their chunks"}
    }

    @routes.post("/v1/completions", responses={**RESPONSES, **streamed}, summary="Continue a text")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        head = CompletionHead(int(time.time()), check_model(config, body.model))
        prompts = _prompts(body, conversations)
        completion = _Completion(body, prompts, conversations)
        limit_s = config.limits.request_timeout_s
        if body.stream:
            chunks = _chunks(completion, head, include_usage=body.include_usage)
            heartbeat_s = config.limits.heartbeat_s
            return EventStream(chunks, completion.aclose, error_chunk, limit_s=limit_s, heartbeat_s=heartbeat_s)
        try:
            await while_wanted(request, completion.finish(), limit_s)
        finally:
            await completion.aclose()
        choices = [choice.whole() for choice in completion.choices]
        return json_answer({**head.fields(), "choices": choices, "usage": usage_of(completion.choices)})

    return routes


class _Completion:
    """All continuations of a request. Its places are taken at once, or none is."""

    def __init__(self, body: CompletionRequest, prompts: list[list[int]], conversations: Conversations) -> None:
        self._body = body
        self._prompts = prompts
        self._conversations = conversations
        tokenizer = conversations.tokenizer
        asks_logprobs = body.logprobs is not None
        self.choices = [
            TextChoice(at * body.n + number, prompt, tokenizer, echo=body.echo, logprobs=asks_logprobs)
            for at, prompt in enumerate(prompts)
            for number in range(body.n)
        ]
        params = body.sampling(body.max_tokens or 1, body.logprobs or 0, tokenizer.vocab_size, conversations.sampling)
        wanted = prompts if body.max_tokens else []
        self._streams = MergedStreams.start(
            conversations, [(prompt, params) for prompt in wanted], priority=body.priority
        )

    async def deltas(self) -> AsyncIterator[TextChoice]:
        """Each choice whenever there is more of it."""
        if self._body.echo:
            await self._echo()
            for choice in self.choices:
                yield choice
        if not self._body.max_tokens:
            for choice in self.choices:
                choice.end()
                yield choice
        async for at, delta in self._streams:
            choice = self.choices[at * self._body.n + delta.index]
            choice.add(delta)
            yield choice

    async def finish(self) -> None:
        """Run all to their end."""
        async for _ in self.deltas():
            pass

    async def aclose(self) -> None:
        """Abort what is still running."""
        await self._streams.aclose()

    async def _echo(self) -> None:
        for at, prompt in enumerate(self._prompts):
            scores = None
            if self._body.logprobs is not None:
                scores = await self._conversations.service.score(prompt, self._body.logprobs)
            for choice in self.choices[at * self._body.n : (at + 1) * self._body.n]:
                choice.echo(scores)


async def _chunks(completion: _Completion, head: CompletionHead, *, include_usage: bool) -> AsyncIterator[bytes]:
    blank = {"usage": None} if include_usage else {}
    async for choice in completion.deltas():
        piece = choice.take()
        if piece is not None:
            yield data_event({**head.fields(), "choices": [piece], **blank})
    if include_usage:
        yield data_event({**head.fields(), "choices": [], "usage": usage_of(completion.choices)})
    yield DONE


def _prompts(body: CompletionRequest, conversations: Conversations) -> list[list[int]]:
    if body.best_of is not None and body.best_of != body.n:
        raise bad_request("best_of must be n: this server does not choose among texts", param="best_of")
    given: list[Any] = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if isinstance(given[0], int):
        given = [given]
    if len(given) * body.n > conversations.limits.max_choices:
        message = f"prompts times n must be at most {conversations.limits.max_choices}, got {len(given) * body.n}"
        raise bad_request(message, param="prompt")
    return [_ids(prompt, conversations) for prompt in given]


def _ids(prompt: str | list[int], conversations: Conversations) -> list[int]:
    if isinstance(prompt, str):
        return conversations.encode(prompt)
    for token in prompt:
        if token >= conversations.tokenizer.vocab_size:
            most = conversations.tokenizer.vocab_size
            raise bad_request(f"prompt: {token} is no token id below {most}", param="prompt")
    return prompt
