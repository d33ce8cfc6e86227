"""A Messages request as the turn that the model answers."""

import secrets
from dataclasses import replace
from typing import Any

from glmcore.engine.sampling import SamplingParams
from glmcore.errors import RequestError
from glmcore.serve.anthropic.conversation import chat_messages, chat_tools
from glmcore.serve.anthropic.schema import CountRequest, MessagesRequest, ToolChoice
from glmcore.serve.errors import bad_request
from glmcore.serve.turn import ToolChoice as ToolChoiceOfTurn
from glmcore.serve.turn import Turn

CHOICES: dict[str, ToolChoiceOfTurn] = {"auto": "auto", "any": "required", "none": "none"}


def turn_of(request: CountRequest, params: SamplingParams) -> Turn:
    """The turn that a request asks for, whose answer is drawn by `params`.

    Raises:
        ServeError: The request asks for what cannot be done.
    """
    tools = chat_tools(request)
    choice = request.tool_choice or ToolChoice(type="auto")
    if choice.type in ("any", "tool") and not tools:
        raise bad_request(f"tool_choice of type {choice.type!r} needs tools")
    if choice.type == "tool" and all(tool["function"]["name"] != choice.name for tool in tools):
        raise bad_request(f"tool_choice.name: there is no tool {choice.name!r}")
    schema = request.output_config.format if request.output_config else None
    return Turn(
        messages=chat_messages(request),
        params=params,
        tools=tools,
        tool_choice={"name": str(choice.name)} if choice.type == "tool" else CHOICES[choice.type],
        parallel_tool_calls=not choice.disable_parallel_tool_use,
        thinking=request.thinking is not None and request.thinking.type != "disabled",
        response_format=None if schema is None else schema.schema_,
    )


def sampling_of(request: MessagesRequest, defaults: SamplingParams) -> SamplingParams:
    """How the answer is drawn; a fresh seed each time, since the API has none.

    Args:
        request: What was asked.
        defaults: What holds where the request does not say.

    Raises:
        ServeError: A value is out of range.
    """
    asked: dict[str, Any] = {name: getattr(request, name) for name in ("temperature", "top_p", "top_k")}
    try:
        return replace(
            defaults,
            max_tokens=request.max_tokens,
            seed=secrets.randbits(63),
            stop=tuple(request.stop_sequences or ()),
            **{name: value for name, value in asked.items() if value is not None},
        )
    except RequestError as error:
        raise bad_request(str(error)) from None


def hides_thinking(request: MessagesRequest) -> bool:
    """Whether the caller wants thinking blocks without their text."""
    return request.thinking is not None and request.thinking.display == "omitted"
