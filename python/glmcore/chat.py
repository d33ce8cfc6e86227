"""Conversations in the format of GLM-4.5 and GLM-4.6: messages to ids, ids to messages."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from glmcore.errors import RequestError
from glmcore.tokenizer import Tokenizer

STOP_AFTER_ANSWER = "<|endoftext|>"
"""Stop label of an answer that no other turn follows."""

TOOLS_PROMPT = (
    "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
CALL_FORMAT = (
    "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n"
    "<tool_call>{function-name}\n"
    "<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>\n"
    "<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>"
)
_TAG = re.compile(r"(</?tool_call>|</?arg_key>|</?arg_value>)")


@dataclass(frozen=True)
class ChatTokens:
    """A rendered conversation."""

    ids: npt.NDArray[np.int32]
    """int32 [n]."""
    loss_mask: npt.NDArray[np.uint8]
    """1 where the assistant wrote the token, its stop label included, uint8 [n]."""


@dataclass(frozen=True)
class ToolCall:
    """A call that the assistant asks for."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Message:
    """What the assistant said."""

    reasoning_content: str
    content: str
    tool_calls: list[ToolCall] = field(default_factory=list[ToolCall])
    finished_thinking: bool = True
    """False when the thinking was cut off before its end tag."""


@dataclass
class _Rendering:
    """Parts of a conversation: special tokens by name, plain text, and who wrote them."""

    parts: list[tuple[str, bool, bool]] = field(default_factory=list[tuple[str, bool, bool]])
    """(text, is a special token, is learned)."""
    learning: bool = False

    def special(self, *tokens: str) -> None:
        self.parts += [(token, True, self.learning) for token in tokens]

    def text(self, text: str) -> None:
        """Add text; neighbours of one kind are joined, so they are tokenised as the one text they are."""
        if not text:
            return
        if self.parts and not self.parts[-1][1] and self.parts[-1][2] == self.learning:
            text = self.parts.pop()[0] + text
        self.parts.append((text, False, self.learning))

    def tagged(self, text: str) -> None:
        """Add text of the format itself, in which tool tags are special tokens."""
        for piece in _TAG.split(text):
            if _TAG.fullmatch(piece):
                self.special(piece)
            else:
                self.text(piece)

    def tokens(self, tokenizer: Tokenizer) -> ChatTokens:
        ids: list[npt.NDArray[np.int32]] = []
        mask: list[npt.NDArray[np.uint8]] = []
        for text, is_special, learned in self.parts:
            part = np.array([tokenizer.token_to_id(text)], np.int32) if is_special else tokenizer.encode_to_numpy(text)
            ids.append(part)
            mask.append(np.full(len(part), learned, np.uint8))
        return ChatTokens(np.concatenate(ids), np.concatenate(mask))


def apply_chat_template(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool = True,
    add_generation_prompt: bool = False,
) -> ChatTokens:
    """Render a conversation as GLM-4.5 and GLM-4.6 read it.

    What people and tools wrote stays text, whatever it looks like. Reasoning of answers before the last user turn is
    dropped. Without a generation prompt a closing answer ends with `<|endoftext|>` as its stop label; an answer that
    another turn follows has that turn's role token as its stop label.

    Args:
        tokenizer: Has the GLM special tokens.
        messages: Each with `role` (system, user, assistant, tool) and `content` (text, or a list of parts with
            `type` and `text`); an assistant's may have `reasoning_content` and `tool_calls`.
        tools: Function descriptions, rendered as JSON.
        thinking: False asks for an answer without thinking.
        add_generation_prompt: End with the opening of an answer.

    Raises:
        RequestError: A message has an unknown role, or its content is no text.

    Source: chat template of GLM-4.6 (chat_template.jinja of the published model).
    """
    out = _Rendering()
    out.special("[gMASK]", "<sop>")
    if tools:
        out.special("<|system|>")
        listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools)
        out.text(TOOLS_PROMPT + listed)
        out.tagged(CALL_FORMAT)
    last_user = max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=-1)
    previous_role = None
    for index, message in enumerate(messages):
        role = message.get("role")
        _render(out, message, index, role == previous_role == "tool", index > last_user, thinking)
        previous_role = role
    if add_generation_prompt:
        _open_turn(out, "<|assistant|>", previous_role)
        if not thinking:
            out.text("\n")
            out.special("<think>", "</think>")
    elif previous_role == "assistant":
        out.learning = True
        out.special(STOP_AFTER_ANSWER)
    return out.tokens(tokenizer)


def _open_turn(out: _Rendering, role_token: str, previous_role: str | None) -> None:
    """A role token; after an answer it is that answer's stop label."""
    out.learning = previous_role == "assistant"
    out.special(role_token)
    out.learning = False


def _render(
    out: _Rendering,
    message: Mapping[str, Any],
    index: int,
    same_observation: bool,
    is_current: bool,
    thinking: bool,
) -> None:
    role = message.get("role")
    stops_answer = "assistant" if out.learning else None
    if role in ("system", "user"):
        text = _text(message.get("content"), index)
        if role == "user" and not thinking and not text.endswith("/nothink"):
            _open_turn(out, "<|user|>", stops_answer)
            out.text("\n" + text)
            out.special("/nothink")
            return
        _open_turn(out, f"<|{role}|>", stops_answer)
        out.text("\n" + text)
    elif role == "assistant":
        _open_turn(out, "<|assistant|>", stops_answer)
        out.learning = True
        _render_answer(out, message, index, is_current)
    elif role == "tool":
        if not same_observation:
            _open_turn(out, "<|observation|>", stops_answer)
        for part in _tool_results(message.get("content"), index):
            out.text("\n")
            out.special("<tool_response>")
            out.text(f"\n{part}\n")
            out.special("</tool_response>")
    else:
        raise RequestError(f"message {index} has role {role!r}; it must be system, user, assistant or tool")


def _render_answer(out: _Rendering, message: Mapping[str, Any], index: int, is_current: bool) -> None:
    content = _text(message.get("content"), index)
    reasoning = message.get("reasoning_content")
    if not isinstance(reasoning, str):
        reasoning = ""
        if "</think>" in content:
            before, content = content.split("</think>")[0], content.split("</think>")[-1]
            reasoning = before.rstrip("\n").split("<think>")[-1].lstrip("\n")
            content = content.lstrip("\n")
    out.text("\n")
    out.special("<think>")
    if is_current:
        out.text(reasoning.strip())
    out.special("</think>")
    if content.strip():
        out.text("\n" + content.strip())
    for call in message.get("tool_calls") or ():
        function = call.get("function") or call
        out.text("\n")
        out.special("<tool_call>")
        out.text(f"{function['name']}\n")
        for key, value in function["arguments"].items():
            out.special("<arg_key>")
            out.text(key)
            out.special("</arg_key>")
            out.text("\n")
            out.special("<arg_value>")
            out.text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            out.special("</arg_value>")
            out.text("\n")
        out.special("</tool_call>")


def _text(content: Any, index: int) -> str:
    """Text of a message's content."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        parts: list[str] = []
        for part in content:  # pyright: ignore[reportUnknownVariableType] (anything may come in)
            text: Any = part if isinstance(part, str) else None
            if isinstance(part, dict) and part.get("type") == "text":  # pyright: ignore[reportUnknownMemberType]
                text = part.get("text")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            if not isinstance(text, str):
                raise RequestError(f"message {index} has a part that is no text")
            parts.append(text)
        return "".join(parts)
    raise RequestError(f"message {index} has content of type {type(content).__name__}; it must be text or parts")


def _tool_results(content: Any, index: int) -> list[str]:
    """Each result that a tool message holds."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise RequestError(f"message {index} has content of type {type(content).__name__}; it must be text or a list")
    results: list[str] = []
    for item in content:  # pyright: ignore[reportUnknownVariableType] (anything may come in)
        part: Any = item.get("output", item) if isinstance(item, dict) else item  # pyright: ignore
        results.append(part if isinstance(part, str) else json.dumps(part, ensure_ascii=False))
    return results


def parse_reply(reply: str | Sequence[int], tokenizer: Tokenizer | None = None) -> Message:
    """Take an assistant's turn apart. Never raises on text, whatever the model wrote.

    Args:
        reply: Text of the turn, or its token ids together with `tokenizer`.
        tokenizer: Needed for ids.

    Source: parsing rules of the GLM-4.5 repository, resources/glm_4.6_tir_guide.md.
    """
    if not isinstance(reply, str):
        if tokenizer is None:
            raise RequestError("parse_reply needs the tokenizer to read token ids")
        reply = tokenizer.decode(reply, skip_special_tokens=True)
    text = reply.lstrip("\n")
    reasoning, finished = "", True
    if text.startswith("<think>"):
        before, tag, after = text.rpartition("</think>")
        finished = bool(tag)
        reasoning, text = (before, after) if finished else (text, "")
        reasoning = reasoning.removeprefix("<think>")
    content, _, calls = text.partition("<tool_call>")
    found = re.findall(r"<tool_call>(.*?)</tool_call>", "<tool_call>" + calls, flags=re.DOTALL)
    return Message(reasoning.strip(), content.strip(), [_parse_call(call) for call in found], finished)


def _parse_call(call: str) -> ToolCall:
    name = re.match(r"[^\n<]*", call)
    pairs = re.findall(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", call, flags=re.DOTALL)
    return ToolCall(name.group().strip() if name else "", {key: _parse_value(value) for key, value in pairs})


def _parse_value(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
