"""A response as the events of the Responses API.

Order: `response.created`, `response.in_progress`, then for each output item `response.output_item.added`, what it is
made of, and `response.output_item.done`, at last `response.completed` (or `response.incomplete`) with the whole
response. Every event has the next `sequence_number`. A request that does not stream gets the response of the last one.
"""

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from glmcore.serve.openai.chunks import chat_logprobs
from glmcore.serve.sealed import sealed
from glmcore.serve.turn import ContentDelta, Finished, ThinkingDelta, ToolCallDelta, ToolCallStart, TurnEvent
from glmcore.tokenizer import Tokenizer

Event = dict[str, Any]


def new_id(prefix: str) -> str:
    """An id that was never given before."""
    return prefix + secrets.token_hex(16)


class ResponseStream:
    """Turns the events of an answer into those of the Responses API.

    Args:
        response: The response before its first token, with an empty `output`.
        tokenizer: Names the tokens whose log-probabilities text parts carry; None if they carry none.
        namespaces: Namespace and name of functions, by the name under which the model calls them.
        seals_reasoning: Reasoning items carry `encrypted_content`.
    """

    def __init__(
        self,
        response: dict[str, Any],
        tokenizer: Tokenizer | None = None,
        *,
        namespaces: Mapping[str, tuple[str, str]] = {},
        seals_reasoning: bool = False,
    ) -> None:
        self._response = response
        self._tokenizer = tokenizer
        self._namespaces = namespaces
        self._seals = seals_reasoning
        self._item: dict[str, Any] | None = None
        """The output item that has begun and not ended."""
        self._sequence = 0

    def start(self) -> list[Event]:
        """The events before the first token."""
        return self._number(
            {"type": f"response.{status}", "response": {**self._response, "status": "in_progress", "output": []}}
            for status in ("created", "in_progress")
        )

    def feed(self, event: TurnEvent) -> list[Event]:
        """The events that one event of the answer becomes."""
        return self._number(self._events(event))

    def fail(self, code: str, message: str) -> list[Event]:
        """The events of an answer that breaks off."""
        response = {**self._response, "status": "failed", "error": {"code": code, "message": message}}
        return self._number([{"type": "response.failed", "response": response}])

    def _events(self, event: TurnEvent) -> Iterator[Event]:
        match event:
            case ThinkingDelta(text=text):
                yield from self._open("reasoning")
                self._last_part()["text"] += text
                yield self._part_event("reasoning_text.delta", delta=text)
            case ContentDelta(text=text, logprobs=logprobs):
                yield from self._open("message")
                told = chat_logprobs(logprobs, self._tokenizer)["content"] if self._tokenizer else []
                self._last_part()["text"] += text
                self._last_part()["logprobs"] += told
                yield self._part_event("output_text.delta", delta=text, logprobs=told)
            case ToolCallStart(id=call_id, name=name):
                yield from self._close("completed")
                yield from self._add(self._call(call_id, name))
            case ToolCallDelta(arguments_json_piece=piece):
                self._current["arguments"] += piece
                yield self._item_event("function_call_arguments.delta", delta=piece)
            case Finished():
                yield from self._finish(event)

    def _call(self, call_id: str, name: str) -> dict[str, Any]:
        call = {"id": new_id("fc_"), "type": "function_call", "call_id": call_id, "name": name, "arguments": ""}
        if name in self._namespaces:
            call["namespace"], call["name"] = self._namespaces[name]
        return call

    def _open(self, kind: str) -> Iterator[Event]:
        """Make the present item one of this kind, with its one part."""
        if self._item is not None and self._item["type"] == kind:
            return
        yield from self._close("completed")
        if kind == "reasoning":
            yield from self._add({"id": new_id("rs_"), "type": "reasoning", "summary": [], "content": []})
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        else:
            yield from self._add({"id": new_id("msg_"), "type": "message", "role": "assistant", "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._current["content"].append(part)
        yield self._part_event("content_part.added", part={**part})

    def _add(self, item: dict[str, Any]) -> Iterator[Event]:
        self._item = {**item, "status": "in_progress"}
        self._response["output"].append(self._item)
        yield self._output_event("output_item.added", _copy(self._item))

    def _close(self, status: str) -> Iterator[Event]:
        """End the present item, if there is one."""
        if self._item is None:
            return
        item = self._item
        item["status"] = status
        if item["type"] == "function_call":
            yield self._item_event("function_call_arguments.done", arguments=item["arguments"], name=item["name"])
        else:
            part = self._last_part()
            told = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
            yield self._part_event(f"{part['type']}.done", text=part["text"], **told)
            yield self._part_event("content_part.done", part={**part})
        if item["type"] == "reasoning" and self._seals:
            item["encrypted_content"] = sealed(self._last_part()["text"])
        yield self._output_event("output_item.done", item)
        self._item = None

    def _finish(self, finished: Finished) -> Iterator[Event]:
        cut_off = finished.reason == "length"
        yield from self._close("incomplete" if cut_off else "completed")
        usage = finished.usage
        self._response |= {
            "status": "incomplete" if cut_off else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut_off else None,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        }
        yield {"type": f"response.{self._response['status']}", "response": self._response}

    @property
    def _current(self) -> dict[str, Any]:
        assert self._item is not None  # events of a part come after those that open its item
        return self._item

    def _last_part(self) -> dict[str, Any]:
        return self._current["content"][-1]

    def _output_event(self, name: str, item: dict[str, Any]) -> Event:
        return {"type": f"response.{name}", "output_index": len(self._response["output"]) - 1, "item": item}

    def _item_event(self, name: str, /, **fields: Any) -> Event:
        index = len(self._response["output"]) - 1
        return {"type": f"response.{name}", "item_id": self._current["id"], "output_index": index, **fields}

    def _part_event(self, name: str, /, **fields: Any) -> Event:
        return self._item_event(name, content_index=0, **fields)

    def _number(self, events: Any) -> list[Event]:
        """Give the events their numbers, after what came before."""
        numbered = []
        for event in events:
            numbered.append({**event, "sequence_number": self._sequence})
            self._sequence += 1
        return numbered


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    """The item as it is now: its content grows."""
    return {key: list(value) if isinstance(value, list) else value for key, value in item.items()}
