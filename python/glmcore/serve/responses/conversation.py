"""A Responses request as the messages and tools that the chat template writes."""

from collections.abc import Iterator, Sequence
from typing import Any

from glmcore.serve.errors import bad_request
from glmcore.serve.responses.schema import (
    ContentPart,
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
    ResponsesRequest,
)
from glmcore.serve.responses.tools import joined
from glmcore.serve.sealed import opened
from glmcore.serve.tool_results import in_call_order

TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
NOT_STORED = "this server stores nothing: send the earlier items again in `input`"


def refuse_what_needs_a_store(request: ResponsesRequest) -> None:
    """Check that the request asks for nothing that this server does not keep or do.

    Raises:
        ServeError: It names an earlier response, a conversation or a stored prompt, or asks to be stored.
    """
    for field in ("previous_response_id", "conversation"):
        if getattr(request, field) is not None:
            raise bad_request(f"{field} cannot be used: {NOT_STORED}")
    if request.prompt is not None:
        raise bad_request("prompt cannot be used: this server stores no prompts; send `instructions` and `input`")
    if request.store:
        raise bad_request("store cannot be true: this server stores nothing; leave it out or send false")
    if request.background:
        raise bad_request("background cannot be true: this server answers in the request itself; use stream instead")
    if request.truncation == "auto":
        raise bad_request("truncation cannot be auto: this server drops no items; shorten `input` yourself")
    if request.max_tool_calls is not None:
        raise bad_request("max_tool_calls limits tools that a server runs, and this one runs none; leave it out")


def chat_messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    """The conversation, the instructions first.

    Raises:
        ServeError: It is empty, ends with the assistant, or holds what the model cannot read.
    """
    messages = [] if not request.instructions else [{"role": "system", "content": request.instructions}]
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    if not request.input:
        raise bad_request("input is empty")
    for index, item in enumerate(request.input):
        _add(messages, item, f"input[{index}]")
    if messages[-1]["role"] == "assistant":
        raise bad_request("input must end with a message or a tool's output: this server continues no begun answer")
    return in_call_order(messages)


def _add(messages: list[dict[str, Any]], item: Item, where: str) -> None:
    """Add an item; reasoning, text and calls that follow one another are one answer."""
    match item:
        case MessageItem(role="assistant", content=content):
            answer = _open_answer(messages)
            answer["content"] = "\n".join(part for part in (answer["content"], _text(content, where)) if part)
        case MessageItem(role=role, content=content):
            spoken_by = "system" if role == "developer" else role
            messages.append({"role": spoken_by, "content": _text(content, where)})
        case FunctionCallItem():
            function = {"name": joined(item.namespace, item.name), "arguments": item.arguments or "{}"}
            call = {"id": item.call_id, "type": "function", "function": function}
            _open_answer(messages).setdefault("tool_calls", []).append(call)
        case FunctionCallOutputItem(call_id=call_id, output=output):
            messages.append({"role": "tool", "tool_call_id": call_id, "content": _text(output, where)})
        case ReasoningItem():
            reasoning = _reasoning(item, where)
            if reasoning:
                answer = _open_answer(messages)
                answer["reasoning_content"] = "\n".join([*_given(answer), reasoning])
        case _ if item.type == "item_reference":
            raise bad_request(f"{where} refers to a stored item: {NOT_STORED}")
        case _:
            raise bad_request(f"{where} is of type {item.type!r}, which this server does not know")


def _given(answer: dict[str, Any]) -> Iterator[str]:
    if "reasoning_content" in answer:
        yield answer["reasoning_content"]


def _open_answer(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer that the last message is, or a new one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _reasoning(item: ReasoningItem, where: str) -> str:
    if item.content:
        return _text(item.content, where)
    return opened(item.encrypted_content or "") or _text(item.summary, where)


def _text(content: str | Sequence[ContentPart], where: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_part(part, f"{where}.content[{number}]") for number, part in enumerate(content))


def _part(part: ContentPart, where: str) -> str:
    if part.type == "refusal":
        return part.refusal or ""
    if part.type == "input_image":
        raise bad_request(f"{where}: this model reads text only; send no images, or describe them in words")
    if part.type not in TEXT_PARTS or part.text is None:
        raise bad_request(f"{where} is of type {part.type!r}; this model reads text only")
    return part.text
