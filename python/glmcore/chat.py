"""Conversations in the formats of GLM-4.5/4.6 and GLM-4.7: messages to ids, ids to messages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from glmcore._core import STOP_TOKENS, CoreChatTemplate, CoreConversation, CoreReplyParser, render_chat
from glmcore._core import parse_reply as parse_text
from glmcore.errors import RequestError
from glmcore.tokenizer import Tokenizer

ChatFormat = Literal["glm-4.5", "glm-4.7"]
"""`glm-4.5` is that of GLM-4.6 too."""
Json = Mapping[str, Any]
_Pieces = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]
_PlainCall = tuple[str, list[tuple[str, str, bool]]]


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


def apply_chat_template(
    tokenizer: Tokenizer,
    messages: Sequence[Json],
    tools: Sequence[Json] | None = None,
    thinking: bool = True,
    add_generation_prompt: bool = False,
    *,
    format: ChatFormat = "glm-4.5",
    clear_thinking: bool = True,
) -> ChatTokens:
    """Render a conversation as the model reads it.

    What people and tools wrote stays text, whatever it looks like. Reasoning of answers before the last user turn is
    dropped. Without a generation prompt a closing answer ends with `<|endoftext|>` as its stop label; an answer that
    another turn follows has that turn's role token as its stop label.

    Args:
        tokenizer: Has the GLM special tokens.
        messages: Each with `role` (system, user, assistant, tool) and `content` (text, or a list of parts with
            `type` and `text`; a user's may be images and videos); an assistant's may have `reasoning_content` and
            `tool_calls`.
        tools: Function descriptions, rendered as JSON.
        thinking: False asks for an answer without thinking.
        add_generation_prompt: End with the opening of an answer.
        format: The model's format.
        clear_thinking: False keeps the reasoning of all answers; for `glm-4.7` only.

    Raises:
        RequestError: A message has an unknown role, or its content is no text.

    Source: chat template of GLM-4.6 (chat_template.jinja of the published model); for GLM-4.7 two third-party copies of
    its template that agree.
    """
    told = None if tools is None else _json(tools, "tools")
    core = tokenizer.core
    return ChatTokens(
        *render_chat(core, _json(messages, "messages"), told, format, thinking, clear_thinking, add_generation_prompt)
    )


class Conversation:
    """A conversation that only grows: ids that have been rendered or sampled never change.

    No reasoning is dropped, because that would change what the model has read and written. For `glm-4.7` this equals
    `apply_chat_template` with `clear_thinking=False`.

    Args:
        tokenizer: Has the GLM special tokens.
        tools: Function descriptions.
        thinking: False asks for answers without thinking.
        format: The model's format.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tools: Sequence[Json] | None = None,
        thinking: bool = True,
        *,
        format: ChatFormat = "glm-4.5",
    ) -> None:
        self._tokenizer = tokenizer
        self._core = CoreConversation(tokenizer.core, format, thinking)
        self._pieces = [self._core.opening(None if tools is None else _json(tools, "tools"))]

    def add(self, message: Json) -> None:
        """Write one more message; see `apply_chat_template`.

        Raises:
            RequestError: The message cannot be rendered; the conversation stays as it was.
        """
        self._pieces.append(self._core.add(_json(message, "message")))

    def prompt(self) -> npt.NDArray[np.int32]:
        """Ids after which a model samples its answer, int32 [n]. The conversation stays as it is."""
        return _join([*self._pieces, self._core.prompt()]).ids

    def add_sampled(self, ids: Sequence[int] | npt.NDArray[np.int32]) -> None:
        """Take an answer that a model has sampled after `prompt`, its stop token included, exactly as it is."""
        sampled = np.asarray(ids, np.int32)
        self._pieces += [self._core.prompt(), (sampled, np.ones(len(sampled), np.uint8))]
        last = self._tokenizer.id_to_token(int(sampled[-1])).decode(errors="replace") if len(sampled) else ""
        self._core.add_sampled(last if last in STOP_TOKENS else "")

    def tokens(self) -> ChatTokens:
        """All ids so far; a written answer that nothing follows has its stop label."""
        return _join([*self._pieces, self._core.ending()])


class ChatTemplate:
    """The chat template of any model, run as `transformers` runs it.

    A special token that someone wrote into a message becomes that token, as in every stack that tokenizes rendered
    text; for GLM's formats `apply_chat_template` keeps it text.

    Args:
        source: Jinja template.
        variables: What the template always sees, such as `bos_token`.

    Raises:
        RequestError: The template cannot be read; the message names the line.
    """

    def __init__(self, source: str, **variables: Any) -> None:
        self._core = CoreChatTemplate(source)
        self._variables = variables

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "ChatTemplate":
        """Read chat_template.jinja of a checkpoint directory, or `chat_template` of its tokenizer_config.json.

        The template also sees the special tokens that tokenizer_config.json names.

        Raises:
            RequestError: There is none, or it cannot be read.
        """
        directory = Path(directory)
        config_file, template_file = directory / "tokenizer_config.json", directory / "chat_template.jinja"
        try:
            config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8")) if config_file.exists() else {}
            given = template_file.read_text(encoding="utf-8") if template_file.exists() else config["chat_template"]
            source = given if isinstance(given, str) else _default_of(given)
            tokens = {key: value for key, value in config.items() if key.endswith("_token") and value}
            plain = {key: value if isinstance(value, str) else str(value["content"]) for key, value in tokens.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise RequestError(f"{directory} has no chat template that can be read: {error!r}") from None
        return cls(source, **plain)

    def render(
        self,
        messages: Sequence[Json],
        tools: Sequence[Json] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """Text of a conversation.

        Args:
            messages: What the template reads, usually a `role` and a `content` each.
            tools: Function descriptions.
            add_generation_prompt: End with the opening of an answer.
            variables: Whatever else the template looks at, such as `enable_thinking`.

        Raises:
            RequestError: The template refuses the conversation, or costs more than it may.
        """
        return self._core.render(self._told(messages, tools, add_generation_prompt, variables))

    def tokens(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Json],
        tools: Sequence[Json] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> ChatTokens:
        """Ids of a conversation; the loss mask is 1 inside of the template's `{% generation %}`. Else as `render`."""
        told = self._told(messages, tools, add_generation_prompt, variables)
        return ChatTokens(*self._core.tokens(tokenizer.core, told))

    def _told(
        self,
        messages: Sequence[Json],
        tools: Sequence[Json] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        shared = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        return _json({**self._variables, **variables, **shared}, "the conversation")


class ReplyParser:
    """Takes a reply apart while it arrives, whatever the model writes.

    The texts of the events of each kind, joined, are the fields of `parse_reply`; `content_withdrawn` empties the
    content, which was reasoning after all.

    Args:
        tools: Function descriptions: arguments that they declare strings are never read as JSON.
        in_thinking: The prompt ended with `<think>`, as GLM-4.7's does.
    """

    def __init__(self, tools: Sequence[Json] | None = None, *, in_thinking: bool = False) -> None:
        self._core = CoreReplyParser(in_thinking, None if tools is None else _json(tools, "tools"))

    def push(self, text: str) -> list["ReplyEvent"]:
        """Take more text and tell what it brings.

        Raises:
            RequestError: The reply has been finished.
        """
        return [_event(*event) for event in self._core.push(_encodable(text))]

    def finish(self) -> tuple[list["ReplyEvent"], Message]:
        """End the text: what was held back, and the whole message."""
        events, (reasoning, content, calls, finished) = self._core.finish()
        message = Message(reasoning, content, [_tool_call(call) for call in calls], finished)
        return [_event(*event) for event in events], message


@dataclass(frozen=True)
class ReplyEvent:
    """What a piece of a reply brings."""

    kind: Literal["reasoning", "content", "content_withdrawn", "call_start", "call"]
    text: str
    """More of the field; the name of the tool for a call."""
    call: ToolCall | None = None
    """The complete call, for `call`."""


def parse_reply(
    reply: str | Sequence[int],
    tokenizer: Tokenizer | None = None,
    *,
    tools: Sequence[Json] | None = None,
    in_thinking: bool = False,
) -> Message:
    """Take an assistant's turn apart. Never raises on text, whatever the model wrote.

    Args:
        reply: Text of the turn, or its token ids together with `tokenizer`.
        tokenizer: Needed for ids.
        tools: Function descriptions: arguments that they declare strings are never read as JSON.
        in_thinking: The prompt ended with `<think>`, as GLM-4.7's does.

    Source: parsing rules of the GLM-4.5 repository, resources/glm_4.6_tir_guide.md; thinking ends at the last
    `</think>` before the first tool call, so that a call whose arguments mention the tag stays one.
    """
    if not isinstance(reply, str):
        if tokenizer is None:
            raise RequestError("parse_reply needs the tokenizer to read token ids")
        reply = tokenizer.decode(reply, skip_special_tokens=True)
    told = None if tools is None else _json(tools, "tools")
    reasoning, content, calls, finished = parse_text(_encodable(reply), in_thinking, told)
    return Message(reasoning, content, [_tool_call(call) for call in calls], finished)


def _default_of(named: Sequence[Mapping[str, str]]) -> str:
    """One of several named templates, as tokenizer_config.json may hold them."""
    return {entry["name"]: entry["template"] for entry in named}["default"]


def _join(pieces: Sequence[_Pieces]) -> ChatTokens:
    return ChatTokens(np.concatenate([ids for ids, _ in pieces]), np.concatenate([mask for _, mask in pieces]))


def _event(kind: Any, text: str, call: _PlainCall | None) -> ReplyEvent:
    return ReplyEvent(kind, text, None if call is None else _tool_call(call))


def _tool_call(call: _PlainCall) -> ToolCall:
    name, arguments = call
    return ToolCall(name, {key: json.loads(value) if is_json else value for key, value, is_json in arguments})


def _json(value: Any, what: str) -> str:
    """JSON that keeps what it stands for, lone surrogates excepted."""
    try:
        return _encodable(json.dumps(value, ensure_ascii=False, default=_plain))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{what} cannot be written as JSON: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, Sequence):
        return list(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _encodable(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")
