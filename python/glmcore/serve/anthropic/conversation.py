"""A Messages request as the messages and tools that the chat template writes."""

from collections.abc import Iterator, Sequence
from typing import Any

from glmcore.serve.anthropic.schema import (
    CountRequest,
    DocumentBlock,
    ImageBlock,
    InputMessage,
    RedactedThinkingBlock,
    SearchResultBlock,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from glmcore.serve.errors import bad_request
from glmcore.serve.sealed import opened
from glmcore.serve.tool_results import in_call_order

BILLING_HEADER = "x-anthropic-billing-header:"
"""Opens a system block that Claude Code writes for Anthropic's accounts. It differs in every request, so as a part of
the prompt it would keep all that follows from being found in the prefix cache."""


def chat_messages(request: CountRequest) -> list[dict[str, Any]]:
    """The conversation, the system prompt first.

    Raises:
        ServeError: The conversation ends with the assistant, or holds what the model cannot read.
    """
    messages: list[dict[str, Any]] = []
    system = request.system if isinstance(request.system, str) else _lines(request.system or [])
    if system:
        messages.append({"role": "system", "content": system})
    for index, message in enumerate(request.messages):
        messages += _chat_message(message, f"messages.{index}")
    if request.messages[-1].role == "assistant":
        raise bad_request(
            "the conversation must end with a user message: this server does not continue an answer that was begun"
        )
    return in_call_order(messages)


def chat_tools(request: CountRequest) -> list[dict[str, Any]]:
    """Descriptions of the tools that the model may call: those that are deferred only once a result refers to them.

    Raises:
        ServeError: A tool is one of those that Anthropic runs itself.
    """
    found = set(_tools_referred_to(request))
    return [_chat_tool(tool) for tool in request.tools or [] if not tool.defer_loading or tool.name in found]


def _tools_referred_to(request: CountRequest) -> Iterator[str]:
    for message in request.messages:
        for block in message.content if isinstance(message.content, list) else []:
            if isinstance(block, ToolResultBlock) and isinstance(block.content, list):
                yield from (part.tool_name for part in block.content if isinstance(part, ToolReferenceBlock))


def _chat_tool(tool: Tool) -> dict[str, Any]:
    if tool.input_schema is None:
        raise bad_request(
            f"tool {tool.name!r} of type {tool.type!r} has no input_schema: this server runs no tools of its own; "
            "describe it as a custom tool with its input_schema and run it yourself"
        )
    described = {} if tool.description is None else {"description": tool.description}
    return {"type": "function", "function": {"name": tool.name, **described, "parameters": tool.input_schema}}


def _chat_message(message: InputMessage, where: str) -> list[dict[str, Any]]:
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    if message.role == "assistant":
        return [_answer(message, where)]
    messages: list[dict[str, Any]] = []
    said: list[str] = []
    for number, block in enumerate(message.content):
        place = f"{where}.content.{number}"
        if isinstance(block, ToolResultBlock):
            if said:
                messages.append({"role": message.role, "content": "\n".join(said)})
                said = []
            messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block, place)})
        else:
            said.append(_text(block, place))
    if said or not messages:
        messages.append({"role": message.role, "content": "\n".join(said)})
    return messages


def _answer(message: InputMessage, where: str) -> dict[str, Any]:
    """An answer that is sent back. Thinking that another server has redacted cannot be read and is left out."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for number, block in enumerate(message.content):
        match block:
            case TextBlock(text=text):
                texts.append(text)
            case ThinkingBlock(thinking=thinking, signature=signature):
                thoughts.append(thinking or opened(signature))
            case ToolUseBlock(id=call_id, name=name, input=arguments):
                function = {"name": name, "arguments": arguments}
                calls.append({"id": call_id, "type": "function", "function": function})
            case RedactedThinkingBlock():
                pass
            case _:
                raise bad_request(f"{where}.content.{number}: only users may send this type of block")
    answer: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        answer["reasoning_content"] = "\n".join(thoughts)
    if calls:
        answer["tool_calls"] = calls
    return answer


def _result(block: ToolResultBlock, where: str) -> str:
    """Text of a result. The model's format has no flag for failure, so a failure says so in words."""
    content = block.content or ""
    text = content if isinstance(content, str) else "\n".join(_text(part, where) for part in content)
    return f"Error: {text}" if block.is_error and not text.startswith("Error") else text


def _text(block: Any, where: str) -> str:
    match block:
        case TextBlock(text=text):
            return text
        case DocumentBlock():
            return _document(block, where)
        case SearchResultBlock(source=source, title=title, content=content):
            return f"{title}\n{source}\n{_lines(content)}"
        case ToolReferenceBlock(tool_name=name):
            return f"The tool {name} is available."
        case ImageBlock():
            raise bad_request(f"{where}: this model reads text only; send no images, or describe them in words")
    raise bad_request(f"{where}: a {block.type} block cannot stand here")


def _document(block: DocumentBlock, where: str) -> str:
    if block.source.type != "text" or block.source.data is None:
        raise bad_request(
            f"{where}: a document must have a source of type text, not {block.source.type}: extract its text first"
        )
    return "\n".join(part for part in (block.title, block.context, block.source.data) if part)


def _lines(blocks: Sequence[TextBlock]) -> str:
    return "\n".join(block.text for block in blocks if not block.text.startswith(BILLING_HEADER))
