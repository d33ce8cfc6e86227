"""Conversations and agent trajectories as documents: OpenAI's chat format and Anthropic's messages."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glmcore.data.documents import Document, OnReject, Record, without_surrogates

Message = dict[str, Any]
_PLAIN_ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user"}
_LEFT_OUT_BLOCKS = frozenset({"redacted_thinking", "cache_control", "container_upload"})


class ConversationError(Exception):
    """Why a conversation is left out."""


@dataclass(frozen=True)
class ConversationRules:
    """Which conversations are learned from."""

    min_assistant_messages: int = 1
    drop_truncated: bool = True
    """Leave out those that do not end with an answer: their last call was never answered, or they were cut off."""
    max_failed_calls: float = 1.0
    """Share of the calls whose result is an error, at most; known for formats that mark errors."""
    max_characters: int = 4_000_000
    """Text of a conversation at most."""


DEFAULT_RULES = ConversationRules()


def openai_documents(
    records: Iterable[Record],
    *,
    source: str = "agent",
    messages_field: str = "messages",
    tools_field: str = "tools",
    rules: ConversationRules = DEFAULT_RULES,
    on_reject: OnReject,
) -> Iterator[Document]:
    """A document of each record in OpenAI's chat format; fields that hold JSON as text are read as such.

    Args:
        records: Place and fields of each.
        source: Source of the documents.
        messages_field: Name of the field with the messages.
        tools_field: Name of the field with the function descriptions, if there are any.
        rules: Which are kept.
        on_reject: Told of each record that is left out.
    """
    for place, record in records:
        try:
            messages = openai_messages(_list(record.get(messages_field), messages_field))
            tools = _tools(record.get(tools_field))
            document = make_document(place, source, messages, tools, rules)
        except ConversationError as error:
            on_reject(place, str(error))
        else:
            yield document


def anthropic_documents(
    records: Iterable[Record],
    *,
    source: str = "agent",
    rules: ConversationRules = DEFAULT_RULES,
    on_reject: OnReject,
) -> Iterator[Document]:
    """A document of each record with `messages`, and maybe `system` and `tools`, as Anthropic's API has them.

    Args:
        records: Place and fields of each.
        source: Source of the documents.
        rules: Which are kept.
        on_reject: Told of each record that is left out.
    """
    for place, record in records:
        try:
            messages = anthropic_messages(_list(record.get("messages"), "messages"), record.get("system"))
            document = make_document(place, source, messages, _tools(record.get("tools")), rules)
        except ConversationError as error:
            on_reject(place, str(error))
        else:
            yield document


def openai_messages(messages: Sequence[Any]) -> list[Message]:
    """Messages of OpenAI's chat format as `glmcore.chat.apply_chat_template` takes them.

    Results are put in the order of their calls, since GLM's format has no ids. Reasoning is taken from
    `reasoning_content` or `reasoning`; the old `function_call` is a call, and the role `function` a result.

    Raises:
        ConversationError: A message is malformed, or holds something else than text.
    """
    found: list[Message] = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ConversationError(f"message {number} is no object")
        role = str(message.get("role"))
        if role in _PLAIN_ROLES:
            found.append({"role": _PLAIN_ROLES[role], "content": _text(message.get("content"), number)})
        elif role in ("assistant", "gpt"):
            calls = [_openai_call(call, number) for call in _list(message.get("tool_calls") or [], "tool_calls")]
            if message.get("function_call"):
                calls.append(_openai_call({"function": message["function_call"]}, number))
            reasoning = message.get("reasoning_content") or message.get("reasoning")
            content = _text(message.get("content"), number) if message.get("content") is not None else ""
            found.append(assistant(content, reasoning if isinstance(reasoning, str) else "", calls))
        elif role in ("tool", "function"):
            text = _text(message.get("content"), number)
            found.append({"role": "tool", "content": text, "call": message.get("tool_call_id")})
        else:
            raise ConversationError(f"message {number} has the role {role!r}")
    return in_order_of_calls(found)


def anthropic_messages(messages: Sequence[Any], system: Any = None) -> list[Message]:
    """Messages of Anthropic's API as `glmcore.chat.apply_chat_template` takes them; see `openai_messages`.

    Thinking becomes `reasoning_content`, several blocks joined; redacted thinking is left out. Results that a user's
    message holds come before its text. Which results are errors is counted, not told: agents read it from the text.

    Raises:
        ConversationError: A message is malformed, or holds something else than text.
    """
    found: list[Message] = []
    if system:
        found.append({"role": "system", "content": _text(system, 0)})
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ConversationError(f"message {number} is no object")
        role, content = message.get("role"), message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else _list(content, "content")
        if role == "assistant":
            found.append(_anthropic_answer(blocks, number))
        elif role == "user":
            results = [block for block in blocks if _type(block, number) == "tool_result"]
            for block in results:
                text = _text(block.get("content") or "", number)
                failed = block.get("is_error") is True
                found.append({"role": "tool", "content": text, "call": block.get("tool_use_id"), "failed": failed})
            said = [block for block in blocks if _type(block, number) != "tool_result"]
            if said or not results:
                found.append({"role": "user", "content": _text(said, number)})
        elif role == "system":
            found.append({"role": "system", "content": _text(blocks, number)})
        else:
            raise ConversationError(f"message {number} has the role {role!r}")
    return in_order_of_calls(found)


def in_order_of_calls(messages: Iterable[Message]) -> list[Message]:
    """Messages with each run of results in the order of the calls that they answer.

    Calls and results may have an id as `call` (a call also as `id`); results without one stay in their order.

    Raises:
        ConversationError: A result answers no call of the answer before it, or a call in the middle has no result.
    """
    ordered: list[Message] = []
    waiting: list[Message] = []
    results: list[Message] = []
    for message in [*messages, None]:
        if message is not None and message["role"] == "tool":
            results.append(message)
            continue
        ordered += _answered(waiting, results, last=message is None)
        waiting, results = [], []
        if message is not None:
            waiting = message.get("tool_calls", [])
            ordered.append(message)
    for message in ordered:
        for call in message.get("tool_calls", ()):
            call.pop("id", None)
    return ordered


def _answered(calls: list[Message], results: list[Message], *, last: bool) -> list[Message]:
    """Results in the order of their calls; checks that they belong together."""
    if len(results) != len(calls) and not (last and not results):
        raise ConversationError(f"{len(calls)} calls have {len(results)} results")
    ids = [call.get("id") for call in calls]
    if any(result.get("call") is not None for result in results):
        if len(set(map(str, ids))) != len(ids):
            raise ConversationError("two calls have the same id")
        place = {str(name): at for at, name in enumerate(ids)}
        if sorted(str(result.get("call")) for result in results) != sorted(place):
            raise ConversationError("a result answers no call, or two answer the same")
        results = sorted(results, key=lambda result: place[str(result.get("call"))])
    return [{key: value for key, value in result.items() if key != "call"} for result in results]


def assistant(content: str, reasoning: str, calls: list[Message]) -> Message:
    """An answer, without the parts that it lacks."""
    message: Message = {"role": "assistant", "content": content}
    if reasoning.strip():
        message["reasoning_content"] = without_surrogates(reasoning)
    if calls:
        message["tool_calls"] = calls
    return message


def make_document(
    name: str, source: str, messages: list[Message], tools: list[dict[str, Any]] | None, rules: ConversationRules
) -> Document:
    """The document of a conversation.

    Raises:
        ConversationError: The rules leave it out.
    """
    answers = [message for message in messages if message["role"] == "assistant"]
    if len(answers) < max(1, rules.min_assistant_messages):
        raise ConversationError(f"{len(answers)} answers, at least {max(1, rules.min_assistant_messages)} are wanted")
    if all(message["role"] in ("assistant", "system") for message in messages):
        raise ConversationError("nobody asks anything")
    last = messages[-1]
    if rules.drop_truncated and (last["role"] != "assistant" or last.get("tool_calls") or not last["content"].strip()):
        raise ConversationError("truncated: it does not end with an answer")
    results = [message for message in messages if message["role"] == "tool"]
    failed = sum(message.pop("failed", False) for message in results)
    if results and failed > rules.max_failed_calls * len(results):
        raise ConversationError(f"{failed} of {len(results)} calls failed")
    size = sum(len(json.dumps(message, ensure_ascii=False)) for message in messages)
    if size > rules.max_characters:
        raise ConversationError(f"{size} characters, at most {rules.max_characters} are taken")
    return Document(name, source, messages=messages, tools=tools or None)


def function(name: Any, arguments: Any, call: Any, number: int) -> Message:
    """A call as the template takes it.

    Raises:
        ConversationError: It has no name, or its arguments are no object.
    """
    if not isinstance(name, str) or not name.strip():
        raise ConversationError(f"message {number} calls a function without a name")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise ConversationError(f"message {number} calls {name} with arguments that are no JSON") from None
    if not isinstance(arguments, Mapping):
        raise ConversationError(f"message {number} calls {name} with arguments that are no object")
    return {
        "type": "function",
        "id": call,
        "function": {"name": without_surrogates(name), "arguments": _encodable(dict(arguments))},
    }


def _openai_call(call: Any, number: int) -> Message:
    inner = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping):
        raise ConversationError(f"message {number} has a call that is none of a function")
    return function(inner.get("name"), inner.get("arguments", {}), call.get("id"), number)


def _anthropic_answer(blocks: list[Any], number: int) -> Message:
    text: list[str] = []
    thinking: list[str] = []
    calls: list[Message] = []
    for block in blocks:
        kind = _type(block, number)
        if kind == "text":
            text.append(_text([block], number))
        elif kind == "thinking":
            thinking.append(without_surrogates(str(block.get("thinking") or "")))
        elif kind in ("tool_use", "server_tool_use"):
            calls.append(function(block.get("name"), block.get("input"), block.get("id"), number))
        elif kind not in _LEFT_OUT_BLOCKS:
            raise ConversationError(f"message {number} has a block of the type {kind!r}")
    return assistant("\n".join(part for part in text if part), "\n".join(thinking), calls)


def _tools(value: Any) -> list[dict[str, Any]] | None:
    """Function descriptions in OpenAI's form, from that or Anthropic's."""
    if value is None or value == "":
        return None
    found: list[dict[str, Any]] = []
    for tool in _list(value, "tools"):
        if not isinstance(tool, Mapping):
            raise ConversationError("a tool is no object")
        if "input_schema" in tool:
            inner = {"name": tool.get("name"), "description": tool.get("description", "")}
            found.append({"type": "function", "function": {**inner, "parameters": tool["input_schema"]}})
        elif "function" in tool or "name" in tool:
            found.append(dict(tool))
        else:
            raise ConversationError("a tool has no name")
    return _encodable(found)


def _list(value: Any, name: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ConversationError(f"{name!r} is text that is no JSON") from None
    if not isinstance(value, list):
        raise ConversationError(f"{name!r} is missing or no list")
    return value


def _type(block: Any, number: int) -> str:
    if not isinstance(block, Mapping):
        raise ConversationError(f"message {number} has a block that is no object")
    return str(block.get("type"))


def _text(content: Any, number: int) -> str:
    """Text of a message, its parts joined by line ends."""
    if isinstance(content, str):
        return without_surrogates(content)
    if not isinstance(content, list):
        raise ConversationError(f"the content of message {number} is missing or no text")
    parts: list[str] = []
    for part in content:
        kind = "text" if isinstance(part, str) else _type(part, number)
        text = part if isinstance(part, str) else part.get("text")
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise ConversationError(f"message {number} has content of the type {kind!r}, which is no text")
        parts.append(without_surrogates(text))
    return "\n".join(parts)


def _encodable(value: Any) -> Any:
    """A JSON value whose texts have no lone surrogates."""
    try:
        return json.loads(without_surrogates(json.dumps(value, ensure_ascii=False)))
    except (TypeError, ValueError, RecursionError):
        raise ConversationError("something cannot be written as JSON") from None
