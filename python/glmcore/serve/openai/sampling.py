"""The fields that chat and text completions share, and what they mean to the sampler."""

import secrets
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from glmcore.engine.sampling import SamplingParams
from glmcore.errors import RequestError
from glmcore.serve.errors import bad_request
from glmcore.serve.text_or import TextOr

MAX_LOGPROBS = 20
MAX_STOPS = 16
UNBOUNDED = 1 << 30
"""Tokens of an answer that only the context bounds."""
_WITH_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Fields for which a checkpoint's generation_config.json speaks where the request does not."""
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]


class Body(BaseModel):
    """Base of requests: a field that the server does not know is refused by name, unless it is null."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None}


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False
    """Accepted and without effect: this server pads nothing."""


class SamplingBody(Body):
    """How tokens are drawn. The names after `seed` that OpenAI does not have are those of vLLM."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: PositiveInt = 1
    stop: TextOr[Annotated[list[StopString], Field(max_length=MAX_STOPS)]] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    min_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    ignore_eos: bool = False
    priority: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] = 0
    user: str | None = None
    """Accepted and without effect, as all that follow."""
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prediction: dict[str, Any] | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(
        self, max_tokens: int | None, top_logprobs: int, vocab_size: int, defaults: SamplingParams
    ) -> SamplingParams:
        """What the sampler is asked for.

        Args:
            max_tokens: Most tokens of an answer; None for what the context leaves.
            top_logprobs: Most likely tokens to tell beside each token.
            vocab_size: Number of token ids.
            defaults: What holds where the request does not say.

        Raises:
            ServeError: A field has a wrong value.
        """
        said = {name: value for name in _WITH_DEFAULTS if (value := self._said(name)) is not None}
        if self.stream_options is not None and not self.stream:
            raise bad_request("stream_options is for streams: set stream=true", param="stream_options")
        stops = (self.stop,) if isinstance(self.stop, str) and self.stop else tuple(self.stop or ())
        stop_ids = None if self.stop_token_ids is None else self._known(self.stop_token_ids, vocab_size)
        most = UNBOUNDED if max_tokens is None else max_tokens
        try:
            return replace(
                defaults,
                max_tokens=most,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                logit_bias=self._bias(vocab_size),
                seed=secrets.randbits(63) if self.seed is None else self.seed % (1 << 64),
                n=self.n,
                stop_token_ids=stop_ids,
                stop=stops,
                min_tokens=self.min_tokens,
                ignore_eos=self.ignore_eos,
                top_logprobs=top_logprobs,
                **said,
            )
        except RequestError as error:
            raise bad_request(str(error)) from None

    def _said(self, name: str) -> float | None:
        value = getattr(self, name) if name in self.model_fields_set else None
        return max(value, 0) if name == "top_k" and value is not None else value  # -1 is for all, too

    def _bias(self, vocab_size: int) -> dict[int, float]:
        bias: dict[int, float] = {}
        for key, value in (self.logit_bias or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
                message = f"logit_bias: {key[:40]!r} is no token id below {vocab_size}"
                raise bad_request(message, param="logit_bias")
            bias[int(key)] = value
        return bias

    def _known(self, ids: list[int], vocab_size: int) -> tuple[int, ...]:
        for token in ids:
            if token >= vocab_size:
                raise bad_request(f"stop_token_ids: {token} is no token id below {vocab_size}", param="stop_token_ids")
        return tuple(ids)
