"""A chat answer in OpenAI's shape: as chunks, and whole."""

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from glmcore.serve.turn import (
    ContentDelta,
    Finished,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStart,
    TurnEvent,
    Usage,
)
from glmcore.tokenizer import Tokenizer

FINISH_REASONS = {"stop": "stop", "stop_sequence": "stop", "length": "length", "tool_calls": "tool_calls"}


class ChatStream:
    """Turns the events of a turn into chunks: for each answer one with its role, its deltas, and one that ends it.

    Args:
        head: Fields of every chunk: `created`, `model`.
        tokenizer: That of the model.
        include_usage: End with a chunk of usage.
        logprobs: Content comes with log-probabilities.
    """

    def __init__(self, head: dict[str, Any], tokenizer: Tokenizer, *, include_usage: bool, logprobs: bool) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion.chunk", **head}
        self._tokenizer = tokenizer
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._begun: set[int] = set()
        self._usages: list[Usage] = []

    def feed(self, event: TurnEvent) -> list[dict[str, Any]]:
        """The chunks that an event becomes."""
        chunks = []
        if event.index not in self._begun:
            self._begun.add(event.index)
            chunks.append(self._chunk(event.index, {"role": "assistant", "content": ""}))
        match event:
            case ThinkingDelta(index, text):
                chunks.append(self._chunk(index, {"reasoning_content": text}))
            case ContentDelta(index, text, logprobs):
                chunks.append(self._chunk(index, {"content": text}, logprobs=logprobs))
            case ToolCallStart(index, call_index, call_id, name):
                call = {"index": call_index, "id": call_id, "type": "function"}
                call["function"] = {"name": name, "arguments": ""}
                chunks.append(self._chunk(index, {"tool_calls": [call]}))
            case ToolCallDelta(index, call_index, piece):
                call = {"index": call_index, "function": {"arguments": piece}}
                chunks.append(self._chunk(index, {"tool_calls": [call]}))
            case Finished(index, reason, stop, usage):
                self._usages.append(usage)
                chunks.append(self._chunk(index, {}, finish_reason=FINISH_REASONS[reason], stop=stop))
        return chunks

    def end(self) -> list[dict[str, Any]]:
        """What comes after the last answer."""
        if not self._include_usage:
            return []
        return [{**self._head, "choices": [], "usage": usage_body(self._usages)}]

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: Sequence[TokenLogprob] = (),
        finish_reason: str | None = None,
        stop: int | str | None = None,
    ) -> dict[str, Any]:
        told = chat_logprobs(logprobs, self._tokenizer) if self._logprobs and logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": finish_reason}
        if finish_reason == "stop":
            choice["stop_reason"] = stop if isinstance(stop, str) else None
        chunk = {**self._head, "choices": [choice]}
        return {**chunk, "usage": None} if self._include_usage else chunk


class ChatAnswer:
    """Folds the events of a turn into one body.

    Args:
        head: Fields of the body: `created`, `model`.
        tokenizer: That of the model.
        logprobs: Content comes with log-probabilities.
    """

    def __init__(self, head: dict[str, Any], tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion", **head}
        self._tokenizer = tokenizer
        self._logprobs = logprobs

    def fold(self, events: Iterable[TurnEvent]) -> dict[str, Any]:
        """The body."""
        by_choice: dict[int, list[TurnEvent]] = {}
        for event in events:
            by_choice.setdefault(event.index, []).append(event)
        choices = [self._choice(index, by_choice[index]) for index in sorted(by_choice)]
        finished = [event.usage for told in by_choice.values() for event in told if isinstance(event, Finished)]
        return {**self._head, "choices": choices, "usage": usage_body(finished)}

    def _choice(self, index: int, events: Sequence[TurnEvent]) -> dict[str, Any]:
        thinking = content = ""
        calls: list[dict[str, Any]] = []
        logprobs: list[TokenLogprob] = []
        end: dict[str, Any] = {}
        for event in events:
            match event:
                case ThinkingDelta(text=text):
                    thinking += text
                case ContentDelta(text=text):
                    content += text
                    logprobs += event.logprobs
                case ToolCallStart(id=call_id, name=name):
                    calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}})
                case ToolCallDelta(arguments_json_piece=piece):
                    calls[-1]["function"]["arguments"] += piece
                case Finished(reason=reason, stop=stop):
                    end = {
                        "finish_reason": FINISH_REASONS[reason],
                        "stop_reason": stop if isinstance(stop, str) else None,
                    }
        message: dict[str, Any] = {"role": "assistant", "content": None if calls and not content else content}
        if thinking:
            message["reasoning_content"] = thinking
        if calls:
            message["tool_calls"] = calls
        told = chat_logprobs(logprobs, self._tokenizer) if self._logprobs else None
        return {"index": index, "message": message, "logprobs": told, **end}


def usage_body(usages: Sequence[Usage]) -> dict[str, Any]:
    """Tokens of all answers to one prompt, which is counted once."""
    prompt = max((usage.prompt_tokens for usage in usages), default=0)
    cached = min((usage.cached_tokens for usage in usages), default=0)  # the first answer reads what the others find
    completion = sum(usage.completion_tokens for usage in usages)
    reasoning = sum(usage.reasoning_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def chat_logprobs(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """Log-probabilities of content, each token as text and as the bytes that it stands for."""
    content = []
    for token in tokens:
        top = sorted(token.top.items(), key=lambda item: -item[1])
        ranked = [_token_body(token_id, logprob, tokenizer) for token_id, logprob in top]
        content.append({**_token_body(token.token_id, token.logprob, tokenizer), "top_logprobs": ranked})
    return {"content": content, "refusal": None}


def _token_body(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    data = tokenizer.id_to_token(token_id)
    return {"token": data.decode(errors="replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}
