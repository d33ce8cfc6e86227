"""A turn of a conversation, whatever dialect asked for it: what to answer, and the events of the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from glmcore.engine.sampling import SamplingParams

Json = Mapping[str, Any]
ToolChoice = Literal["auto", "none", "required"] | Mapping[str, str]
"""A mapping names the one tool to call: `{"name": ...}`."""
ResponseFormat = Literal["json_object"] | Mapping[str, Any] | None
"""`json_object` is any JSON object; a mapping is a JSON schema that the content must fit."""
Reason = Literal["stop", "length", "tool_calls", "stop_sequence"]


@dataclass(frozen=True)
class Turn:
    """What a request asks of the model."""

    messages: Sequence[Json]
    """As `apply_chat_template` takes them."""
    params: SamplingParams
    tools: Sequence[Json] = ()
    """Function descriptions: `{"type": "function", "function": {"name", "description", "parameters"}}`."""
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    """False ends an answer after its first call."""
    thinking: bool = True
    response_format: ResponseFormat = None
    logprobs: bool = False
    """Tell the log-probabilities of the content's tokens."""
    priority: int = 0
    """Lower comes first."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer."""

    prompt_tokens: int
    cached_tokens: int
    """Those of the prompt that were in the prefix cache."""
    completion_tokens: int
    """All that were generated."""
    reasoning_tokens: int
    """Those of them that were thinking."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability and those of the most likely ones, itself or not among them."""

    token_id: int
    logprob: float
    top: dict[int, float]


@dataclass(frozen=True)
class ThinkingDelta:
    """More thinking. None comes after the first content."""

    index: int
    text: str


@dataclass(frozen=True)
class ContentDelta:
    """More content. None comes after the first tool call."""

    index: int
    text: str
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])


@dataclass(frozen=True)
class ToolCallStart:
    """A tool call begins; its id was never given before."""

    index: int
    call_index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallDelta:
    """More of the arguments of the tool call that has begun, as JSON text."""

    index: int
    call_index: int
    arguments_json_piece: str


@dataclass(frozen=True)
class Finished:
    """An answer is complete: nothing more comes with its index."""

    index: int
    reason: Reason
    stop: int | str | None
    """The stop token or stop string that ended it."""
    usage: Usage


TurnEvent = ThinkingDelta | ContentDelta | ToolCallStart | ToolCallDelta | Finished
"""What a piece of an answer brings; `index` says which of the `n` answers."""
