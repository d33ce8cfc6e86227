"""An answer as the events of the Messages API: the grammar of the stream, and the whole message folded from it.

Order: `message_start`, `ping`, then for each block `content_block_start`, its `content_block_delta`s and
`content_block_stop`, then `message_delta` and `message_stop`. Blocks follow one another; their indices count up.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable
from typing import Any

from glmcore.serve.sealed import sealed
from glmcore.serve.turn import ContentDelta, Finished, ThinkingDelta, ToolCallDelta, ToolCallStart, TurnEvent, Usage

Event = dict[str, Any]
PING: Event = {"type": "ping"}
STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "stop_sequence": "stop_sequence"}


def new_id(prefix: str) -> str:
    """An id that was never given before: clients join what has the same id."""
    return prefix + secrets.token_hex(12)


class MessageStream:
    """Turns the events of an answer into those of the Messages API.

    Args:
        model: The name that the request gave.
        prompt_tokens: Length of the prompt.
        max_tokens: What the request allowed.
        shows_thinking: False keeps the text of the thinking out of the answer, and seals it into the signature.
    """

    def __init__(self, model: str, prompt_tokens: int, max_tokens: int, *, shows_thinking: bool = True) -> None:
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._max_tokens = max_tokens
        self._shows_thinking = shows_thinking
        self._open = ""
        """Type of the block that has begun and not ended."""
        self._index = -1
        self._thinking = ""
        self._blank = ""
        """White space that may begin a text block: a block of nothing else is never sent."""

    def start(self) -> list[Event]:
        """The events before the first token."""
        message = {
            "id": new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(Usage(self._prompt_tokens, 0, 0, 0)),
        }
        return [{"type": "message_start", "message": message}, PING]

    def feed(self, event: TurnEvent) -> list[Event]:
        """The events that one event of the answer becomes."""
        match event:
            case ThinkingDelta(text=text):
                return self._think(text)
            case ContentDelta(text=text):
                return self._say(text)
            case ToolCallStart(name=name):
                block = {"type": "tool_use", "id": new_id("toolu_"), "name": name, "input": {}}
                return [*self._begin(block), self._delta({"type": "input_json_delta", "partial_json": ""})]
            case ToolCallDelta():
                return [self._delta({"type": "input_json_delta", "partial_json": event.arguments_json_piece})]
            case Finished():
                return [*self._end(), *self._finish(event)]

    def _think(self, text: str) -> list[Event]:
        events = []
        if self._open != "thinking":
            events = self._begin({"type": "thinking", "thinking": "", "signature": ""})
        self._thinking += text
        if self._shows_thinking:
            events.append(self._delta({"type": "thinking_delta", "thinking": text}))
        return events

    def _say(self, text: str) -> list[Event]:
        events = []
        if self._open != "text":
            self._blank += text
            if not self._blank.strip():
                return []
            text = self._blank
            events = self._begin({"type": "text", "text": ""})
        return [*events, self._delta({"type": "text_delta", "text": text})] if text else events

    def _begin(self, block: dict[str, Any]) -> list[Event]:
        events = self._end()
        self._open = block["type"]
        self._index += 1
        return [*events, {"type": "content_block_start", "index": self._index, "content_block": block}]

    def _end(self) -> list[Event]:
        events = []
        if self._open == "thinking":
            signed = _digest(self._thinking) if self._shows_thinking else sealed(self._thinking)
            events = [self._delta({"type": "signature_delta", "signature": signed})]
        if self._open:
            events.append({"type": "content_block_stop", "index": self._index})
        self._open = self._thinking = self._blank = ""
        return events

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _finish(self, finished: Finished) -> list[Event]:
        reason = STOP_REASONS.get(finished.reason) or self._length_reason(finished.usage)
        sequence = finished.stop if finished.reason == "stop_sequence" else None
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return [{"type": "message_delta", "delta": delta, "usage": _usage(finished.usage)}, {"type": "message_stop"}]

    def _length_reason(self, usage: Usage) -> str:
        return "max_tokens" if usage.completion_tokens >= self._max_tokens else "model_context_window_exceeded"


def whole_message(events: Iterable[Event]) -> dict[str, Any]:
    """The message that a stream of events tells: the answer to a request that does not stream."""
    message: dict[str, Any] = {}
    arguments = ""
    for event in events:
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                message["content"].append(event["content_block"])
                arguments = ""
            case "content_block_delta":
                delta, block = event["delta"], message["content"][-1]
                if delta["type"] == "input_json_delta":
                    arguments += delta["partial_json"]
                else:
                    field = delta["type"].removesuffix("_delta")
                    block[field] += delta[field]
            case "content_block_stop":
                if arguments:
                    message["content"][-1]["input"] = _input(arguments)
                arguments = ""
            case "message_delta":
                message |= event["delta"] | {"usage": event["usage"]}
    return message


def _digest(thinking: str) -> str:
    """The signature of thinking that the block shows: clients drop blocks that have none."""
    return hashlib.sha256(thinking.encode(errors="replace")).hexdigest()


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call; none where `max_tokens` cut them off, which `stop_reason` tells."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def _usage(usage: Usage) -> dict[str, Any]:
    """Tokens as Anthropic counts them: those read from the cache stand beside `input_tokens`, not in it."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
