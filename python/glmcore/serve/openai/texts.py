"""A text completion in OpenAI's shape, piece by piece and whole."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from glmcore.engine.request import Delta
from glmcore.engine.scoring import TextScores
from glmcore.tokenizer import Tokenizer


@dataclass(frozen=True)
class CompletionHead:
    """What all chunks of an answer have in common."""

    created: int
    model: str
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")

    def fields(self) -> dict[str, Any]:
        """Them, as the body has them."""
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}


class TextChoice:
    """One continuation.

    Args:
        index: Its number in the request.
        prompt: Token ids.
        tokenizer: That of the model.
        echo: The prompt comes first.
        logprobs: Tokens come with log-probabilities.
    """

    def __init__(self, index: int, prompt: Sequence[int], tokenizer: Tokenizer, *, echo: bool, logprobs: bool) -> None:
        self.prompt = prompt
        self.completion_tokens = 0
        self.cached_tokens = 0
        self._index = index
        self._tokenizer = tokenizer
        self._asks_logprobs = logprobs
        self._text = ""
        self._logprobs: dict[str, list[Any]] = _no_logprobs()
        self._offset = 0
        self._end: tuple[str, int | str | None] | None = None
        self._taken_text = 0
        self._taken_tokens = 0
        self._ended = False

    def echo(self, scores: TextScores | None) -> None:
        """Begin with the prompt, and with what `EngineService.score` says of it."""
        self._text = self._tokenizer.decode(list(self.prompt))
        if scores is not None:
            for token, logprob, top in zip(self.prompt, scores.logprobs, scores.top_logprobs, strict=True):
                text = self._token_text(token)
                self._note(text, logprob, top)
                self._offset += len(text)
        self._offset = len(self._text)

    def add(self, delta: Delta) -> None:
        """More of the continuation."""
        self.completion_tokens += len(delta.token_ids)
        self.cached_tokens += delta.cached_tokens
        self._text += delta.text
        if self._asks_logprobs:
            tops = delta.top_logprobs or [{} for _ in delta.token_ids]
            for token, logprob, top in zip(delta.token_ids, delta.logprobs, tops, strict=True):
                text = self._token_text(token)
                self._note(text, logprob, top)
                self._offset += len(text)
        if delta.finish_reason is not None:
            self._end = (delta.finish_reason, delta.stop)

    def end(self) -> None:
        """Nothing is to be generated."""
        self._end = ("length", None)

    def take(self) -> dict[str, Any] | None:
        """What has come since the last time; None if nothing has."""
        text = self._text[self._taken_text :]
        logprobs = {name: values[self._taken_tokens :] for name, values in self._logprobs.items()}
        if not text and not logprobs["tokens"] and (self._end is None or self._ended):
            return None
        self._taken_text = len(self._text)
        self._taken_tokens = len(self._logprobs["tokens"])
        self._ended = self._end is not None
        return self._body(text, logprobs)

    def whole(self) -> dict[str, Any]:
        """All of it."""
        return self._body(self._text, self._logprobs)

    def _body(self, text: str, logprobs: dict[str, list[Any]]) -> dict[str, Any]:
        reason, stop = self._end or (None, None)
        return {
            "index": self._index,
            "text": text,
            "logprobs": logprobs if self._asks_logprobs else None,
            "finish_reason": reason,
            "stop_reason": stop,
        }

    def _note(self, text: str, logprob: float | None, top: dict[int, float] | None) -> None:
        told = None if top is None else {self._token_text(token): value for token, value in top.items()}
        for name, value in (
            ("tokens", text),
            ("token_logprobs", logprob),
            ("top_logprobs", told),
            ("text_offset", self._offset),
        ):
            self._logprobs[name].append(value)

    def _token_text(self, token: int) -> str:
        """Text of a token; of one that is no text by itself its bytes, so that no two tokens look the same."""
        data = self._tokenizer.id_to_token(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def usage_of(choices: Sequence[TextChoice]) -> dict[str, Any]:
    """Tokens of all continuations; a prompt is counted once."""
    prompts = {id(choice.prompt): len(choice.prompt) for choice in choices}
    cached = {id(choice.prompt): choice.cached_tokens for choice in reversed(choices)}  # of the first one of each
    prompt, completion = sum(prompts.values()), sum(choice.completion_tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
    }


def _no_logprobs() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
