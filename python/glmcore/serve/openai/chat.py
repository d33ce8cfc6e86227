"""POST /v1/chat/completions."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from glmcore.serve.config import ServeConfig
from glmcore.serve.conversations import Answers, Conversations
from glmcore.serve.errors import bad_request
from glmcore.serve.openai.chat_schema import ChatMessage, ChatRequest
from glmcore.serve.openai.chunks import ChatAnswer, ChatStream
from glmcore.serve.openai.errors import RESPONSES, error_chunk
from glmcore.serve.openai.models import check_model
from glmcore.serve.sse import EventStream, data_event, json_answer
from glmcore.serve.tool_results import in_call_order
from glmcore.serve.turn import ResponseFormat, ToolChoice, Turn
from glmcore.serve.whole import whole_answer

DONE = b"data: [DONE]\n\n"


def router(conversations: Conversations, config: ServeConfig) -> APIRouter:
    """The path of chat completions."""
    routes = APIRouter(tags=["OpenAI"])
    streamed = {
        200: {"content": {"text/event-stream": {}}, "description": "The answer, or with stream=true its chunks"}
    }

    @routes.post("/v1/chat/completions", responses={**RESPONSES, **streamed}, summary="Answer a conversation")
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        model = check_model(config, body.model)
        turn = _turn(body, conversations, config.thinking)
        answers = conversations.run(turn)
        head = {"created": int(time.time()), "model": model}
        if body.stream:
            stream = ChatStream(head, conversations.tokenizer, include_usage=body.include_usage, logprobs=turn.logprobs)
            return EventStream(
                _chunks(answers, stream),
                answers.aclose,
                error_chunk,
                limit_s=config.limits.request_timeout_s,
                heartbeat_s=config.limits.heartbeat_s,
            )
        events = await whole_answer(request, answers, config.limits.request_timeout_s)
        return json_answer(ChatAnswer(head, conversations.tokenizer, logprobs=turn.logprobs).fold(events))

    return routes


async def _chunks(answers: Answers, stream: ChatStream) -> AsyncIterator[bytes]:
    async for event in answers:
        for chunk in stream.feed(event):
            yield data_event(chunk)
    for chunk in stream.end():
        yield data_event(chunk)
    yield DONE


def _turn(body: ChatRequest, conversations: Conversations, thinking: bool) -> Turn:
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs=true", param="top_logprobs")
    tools = [tool.given for tool in body.tools or []]
    return Turn(
        messages=chat_messages(body.messages),
        params=body.sampling(asked, body.top_logprobs or 0, conversations.tokenizer.vocab_size, conversations.sampling),
        tools=tools,
        tool_choice=_tool_choice(body, [tool["function"]["name"] for tool in tools]),
        parallel_tool_calls=body.parallel_tool_calls,
        thinking=_thinking(body, thinking),
        response_format=_response_format(body),
        logprobs=body.logprobs,
        priority=body.priority,
    )


def chat_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as `apply_chat_template` takes them.

    Raises:
        ServeError: A content has a part that the model cannot read.
    """
    return in_call_order([_message(message, f"messages.{at}") for at, message in enumerate(messages)])


def _message(message: ChatMessage, where: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(message, where),
    }
    reasoning = message.reasoning_content or message.reasoning
    if message.role == "assistant" and reasoning:
        made["reasoning_content"] = reasoning
    if message.role == "assistant" and message.tool_calls:
        made["tool_calls"] = [
            {"id": call.id, "function": {"name": call.function.name, "arguments": call.function.arguments or {}}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        made["tool_call_id"] = message.tool_call_id
    return made


def _text(message: ChatMessage, where: str) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    texts: list[str] = []
    for at, part in enumerate(message.content):
        text = {"text": part.text, "refusal": part.refusal}.get(part.type)
        if text is None:
            place = f"{where}.content.{at}"
            raise bad_request(f"{place}: the model reads parts of type text, not {part.type[:40]!r}", param=place)
        texts.append(text)
    return "".join(texts)


def _tool_choice(body: ChatRequest, names: list[str]) -> ToolChoice:
    choice = body.tool_choice
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice == "required" and not names:
            raise bad_request("tool_choice=required needs tools", param="tool_choice")
        return choice
    if choice.function.name not in names:
        raise bad_request(f"tool_choice names {choice.function.name[:100]!r}, which is no tool", param="tool_choice")
    return {"name": choice.function.name}


def _thinking(body: ChatRequest, default: bool) -> bool:
    if body.chat_template_kwargs is not None and body.chat_template_kwargs.enable_thinking is not None:
        return body.chat_template_kwargs.enable_thinking
    if body.thinking is not None:
        return body.thinking.type == "enabled"
    if body.reasoning_effort is not None:
        return body.reasoning_effort != "none"
    return default


def _response_format(body: ChatRequest) -> ResponseFormat:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return "json_object"
    if wanted.json_schema is None:
        raise bad_request("response_format of type json_schema needs json_schema", param="response_format.json_schema")
    return wanted.json_schema.schema_
