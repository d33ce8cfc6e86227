"""A Responses request as the turn that the model answers, and the response before its first token."""

import secrets
import time
from dataclasses import replace
from typing import Any

from glmcore.engine.sampling import SamplingParams
from glmcore.errors import RequestError
from glmcore.serve.errors import bad_request
from glmcore.serve.openai.sampling import UNBOUNDED
from glmcore.serve.responses.conversation import chat_messages, refuse_what_needs_a_store
from glmcore.serve.responses.schema import ResponsesRequest, ToolChoice
from glmcore.serve.responses.stream import new_id
from glmcore.serve.responses.tools import chat_tools, joined
from glmcore.serve.turn import ResponseFormat, Turn
from glmcore.serve.turn import ToolChoice as TurnToolChoice

LOGPROBS = "message.output_text.logprobs"
SEALED_REASONING = "reasoning.encrypted_content"


def turn_of(request: ResponsesRequest, params: SamplingParams, *, thinks_by_default: bool) -> Turn:
    """The turn that a request asks for, whose answer is drawn by `params`.

    Raises:
        ServeError: The request asks for what cannot be done.
    """
    refuse_what_needs_a_store(request)
    tools = chat_tools(request.tools)
    choice = request.tool_choice
    if isinstance(choice, ToolChoice):
        tools, choice = _chosen(choice, tools)
    if choice == "required" and not tools:
        raise bad_request("tool_choice 'required' needs tools", param="tool_choice")
    effort = request.reasoning.effort if request.reasoning else None
    return Turn(
        messages=chat_messages(request),
        params=params,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        thinking=thinks_by_default if effort is None else effort != "none",
        response_format=_format(request),
        logprobs=tells_logprobs(request),
    )


def sampling_of(request: ResponsesRequest, defaults: SamplingParams) -> SamplingParams:
    """How the answer is drawn; a fresh seed each time, since the API has none.

    Args:
        request: What was asked.
        defaults: What holds where the request does not say.

    Raises:
        ServeError: A value is out of range.
    """
    asked: dict[str, Any] = {name: getattr(request, name) for name in ("temperature", "top_p", "top_logprobs")}
    try:
        return replace(
            defaults,
            max_tokens=request.max_output_tokens or UNBOUNDED,
            seed=secrets.randbits(63),
            **{name: value for name, value in asked.items() if value is not None},
        )
    except RequestError as error:
        raise bad_request(str(error)) from None


def tells_logprobs(request: ResponsesRequest) -> bool:
    """Whether text parts carry the log-probabilities of their tokens."""
    return LOGPROBS in (request.include or ()) or request.top_logprobs is not None


def seals_reasoning(request: ResponsesRequest) -> bool:
    """Whether reasoning items carry `encrypted_content`."""
    return SEALED_REASONING in (request.include or ())


def empty_response(request: ResponsesRequest, model: str, defaults: SamplingParams) -> dict[str, Any]:
    """The response before its first token."""
    given = request.model_dump(mode="json", by_alias=True)
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": None,
        "metadata": request.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": given["reasoning"] or {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": defaults.temperature if request.temperature is None else request.temperature,
        "text": given["text"] or {"format": {"type": "text"}},
        "tool_choice": given["tool_choice"],
        "tools": [tool.model_dump(mode="json", exclude_unset=True) for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": defaults.top_p if request.top_p is None else request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


def _chosen(choice: ToolChoice, tools: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], TurnToolChoice]:
    """Tools that may be called, and whether they must be."""
    names = {tool["function"]["name"] for tool in tools}
    if choice.type == "function":
        name = joined(choice.namespace, str(choice.name))
        if name not in names:
            raise bad_request(f"tool_choice: there is no function {name!r} in tools", param="tool_choice")
        return tools, {"name": name}
    if choice.type == "allowed_tools":
        allowed = {tool.get("name") for tool in choice.tools}
        if not allowed <= names:
            raise bad_request("tool_choice.tools names a tool that is not in tools", param="tool_choice")
        return [tool for tool in tools if tool["function"]["name"] in allowed], choice.mode
    raise bad_request(f"tool_choice of type {choice.type!r}: this server runs no tools of its own", param="tool_choice")


def _format(request: ResponsesRequest) -> ResponseFormat:
    wanted = request.text.format if request.text else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return "json_object"
    if wanted.schema_ is None:
        raise bad_request("text.format of type json_schema needs a schema", param="text.format.schema")
    return wanted.schema_
