"""POST /tokenize and /detokenize, as vLLM has them."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response
from typing_extensions import Self

from glmcore.engine.sampling import SamplingParams
from glmcore.serve.config import ServeConfig
from glmcore.serve.conversations import Conversations
from glmcore.serve.errors import bad_request
from glmcore.serve.openai.chat import chat_messages
from glmcore.serve.openai.chat_schema import ChatMessage, TemplateArguments, Tool
from glmcore.serve.openai.errors import RESPONSES
from glmcore.serve.openai.models import check_model
from glmcore.serve.openai.sampling import Body, TokenId
from glmcore.serve.sse import json_answer
from glmcore.serve.turn import Turn


class TokenizeRequest(Body):
    """A text, or a conversation with the opening of an answer."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: TemplateArguments | None = None
    add_special_tokens: bool = False
    """Without effect: the tokenizer adds none."""
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _has_one_text(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class TokenizeAnswer(BaseModel):
    """Token ids."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Body):
    """Token ids."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20)]


class DetokenizeAnswer(BaseModel):
    """Their text, bytes that are no UTF-8 as U+FFFD."""

    prompt: str


def router(conversations: Conversations, config: ServeConfig) -> APIRouter:
    """The two paths, with and without /v1."""
    routes = APIRouter(tags=["OpenAI"])
    tokenizer = conversations.tokenizer

    @routes.post("/v1/tokenize", responses=RESPONSES, response_model=TokenizeAnswer, include_in_schema=False)
    @routes.post("/tokenize", responses=RESPONSES, response_model=TokenizeAnswer, summary="Token ids of a text")
    async def tokenize(body: TokenizeRequest) -> Response:
        check_model(config, body.model)
        ids = _ids(body, conversations, config.thinking)
        answer: dict[str, Any] = {"count": len(ids), "max_model_len": conversations.limits.context, "tokens": ids}
        if body.return_token_strs:
            answer["token_strs"] = [tokenizer.id_to_token(token).decode(errors="replace") for token in ids]
        return json_answer(answer)

    @routes.post("/v1/detokenize", responses=RESPONSES, response_model=DetokenizeAnswer, include_in_schema=False)
    @routes.post("/detokenize", responses=RESPONSES, response_model=DetokenizeAnswer, summary="Text of token ids")
    async def detokenize(body: DetokenizeRequest) -> Response:
        check_model(config, body.model)
        if max(body.tokens, default=0) >= tokenizer.vocab_size:
            raise bad_request(f"tokens: an id is not below {tokenizer.vocab_size}", param="tokens")
        return json_answer({"prompt": tokenizer.decode(body.tokens)})

    return routes


def _ids(body: TokenizeRequest, conversations: Conversations, thinking: bool) -> list[int]:
    if body.prompt is not None:
        return conversations.encode(body.prompt)
    asked = body.chat_template_kwargs.enable_thinking if body.chat_template_kwargs else None
    turn = Turn(
        chat_messages(body.messages or []),
        SamplingParams(),
        [tool.given for tool in body.tools or []],
        thinking=thinking if asked is None else asked,
    )
    return conversations.prompt_ids(turn)
