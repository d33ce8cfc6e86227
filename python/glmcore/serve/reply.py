"""An answer taken apart while it arrives: thinking, content and tool calls."""

import json
import secrets

from glmcore.chat import ReplyEvent, ReplyParser
from glmcore.engine.request import Delta
from glmcore.serve.turn import (
    ContentDelta,
    Finished,
    Reason,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStart,
    Turn,
    TurnEvent,
    Usage,
)

THINK_END = "</think>"


class Reply:
    """Turns the deltas of one answer into events.

    What has been told is never taken back: content stays content even if a second `</think>` follows it.

    Args:
        index: Which of the request's answers.
        turn: What was asked.
        prompt_tokens: Length of the prompt.
        in_thinking: The prompt ended with `<think>`.
    """

    def __init__(self, index: int, turn: Turn, prompt_tokens: int, *, in_thinking: bool = False) -> None:
        self.done = False
        self._index = index
        self._turn = turn
        self._prompt_tokens = prompt_tokens
        self._parser = ReplyParser(list(turn.tools) or None, in_thinking=in_thinking)
        self._num_tokens = 0
        self._cached_tokens = 0
        self._tail = ""
        """End of the text, in which `</think>` may have begun."""
        self._thought = in_thinking
        self._thought_tokens: int | None = None
        """Tokens up to the end of the thinking, once it has ended."""
        self._said = False
        self._num_calls = 0
        self._logprobs = ContentLogprobs() if turn.logprobs else None

    def feed(self, delta: Delta) -> list[TurnEvent]:
        """The events that a delta brings; none once the answer is done."""
        if self.done:
            return []
        self._count(delta)
        if self._logprobs is not None:
            self._logprobs.push(delta)
        events = [event for told in self._parser.push(delta.text) for event in self._translate(told)]
        if delta.finish_reason is not None and not self.done:
            held_back, _ = self._parser.finish()
            events += [event for told in held_back for event in self._translate(told)]
            if not self.done:
                events.append(self._finish(self._reason(delta), delta.stop))
        return events

    def _count(self, delta: Delta) -> None:
        self._num_tokens += len(delta.token_ids)
        self._cached_tokens += delta.cached_tokens
        if not self._said and not self._num_calls:
            self._tail += delta.text
            if THINK_END in self._tail:
                self._thought_tokens = self._num_tokens
            self._tail = self._tail[-len(THINK_END) + 1 :]

    def _translate(self, told: ReplyEvent) -> list[TurnEvent]:
        if self.done:
            return []
        if told.kind == "reasoning" and not self._said:
            self._thought = True
            return [ThinkingDelta(self._index, told.text)]
        if told.kind == "content":
            self._said = True
            logprobs = [] if self._logprobs is None else self._logprobs.take(told.text)
            return [ContentDelta(self._index, told.text, logprobs)]
        if told.kind == "call" and self._turn.tool_choice != "none":
            return self._call(told)
        return []

    def _call(self, told: ReplyEvent) -> list[TurnEvent]:
        assert told.call is not None
        number = self._num_calls
        self._num_calls += 1
        arguments = json.dumps(told.call.arguments, ensure_ascii=False)
        events: list[TurnEvent] = [
            ToolCallStart(self._index, number, f"call_{secrets.token_hex(12)}", told.call.name),
            ToolCallDelta(self._index, number, arguments),
        ]
        if not self._turn.parallel_tool_calls:
            events.append(self._finish("tool_calls", None))
        return events

    def _reason(self, delta: Delta) -> Reason:
        if delta.finish_reason == "length":
            return "length"
        if isinstance(delta.stop, str):
            return "stop_sequence"
        return "tool_calls" if self._num_calls else "stop"

    def _finish(self, reason: Reason, stop: int | str | None) -> Finished:
        self.done = True
        thought = 0
        if self._thought:
            thought = self._num_tokens if self._thought_tokens is None else self._thought_tokens
        usage = Usage(self._prompt_tokens, self._cached_tokens, self._num_tokens, thought)
        return Finished(self._index, reason, stop, usage)


class ContentLogprobs:
    """Finds the tokens that the content is made of, among thinking, tags and white space at its ends."""

    def __init__(self) -> None:
        self._text = ""
        self._waiting: list[tuple[int, TokenLogprob]] = []
        """Tokens not yet given out, each with the place in the text where its delta ends."""
        self._given: int | None = None
        """Place in the text up to which content was told."""
        self._covered = 0
        """Place in the text up to which its tokens were given out."""

    def push(self, delta: Delta) -> None:
        """Take the tokens of a delta. Those without text belong to the next text that comes."""
        self._text += delta.text
        if delta.finish_reason is not None and not delta.text:
            return
        tops = delta.top_logprobs or [{} for _ in delta.token_ids]
        for token, logprob, top in zip(delta.token_ids, delta.logprobs, tops, strict=True):
            self._waiting.append((len(self._text), TokenLogprob(token, logprob, top)))

    def take(self, content: str) -> list[TokenLogprob]:
        """The tokens of content that is told now; one that reaches beyond it comes with it."""
        if self._given is None:
            after_thinking = self._text.rfind(THINK_END) + len(THINK_END) if THINK_END in self._text else 0
            start = self._text.find(content, after_thinking)
            self._waiting = [(end, token) for end, token in self._waiting if end > start]
            self._given = self._covered = start
        self._given += len(content)
        taken: list[TokenLogprob] = []
        while self._waiting and self._covered < self._given:
            self._covered, token = self._waiting.pop(0)
            taken.append(token)
        return taken
