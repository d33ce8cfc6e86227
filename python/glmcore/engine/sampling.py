"""What a request asks of sampling, and the random numbers that decide its tokens."""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from glmcore.engine.constrain import Constraint
from glmcore.errors import RequestError

STREAM_TOKEN, STREAM_DRAFT, STREAM_ACCEPT = range(3)
"""What a random number decides: a token, a drafted token, whether a drafted token stays."""


@dataclass(frozen=True)
class SamplingParams:
    """What a request asks of sampling; the defaults sample from the model's own distribution.

    The scores of the next token are changed in this order: `logit_bias`, `repetition_penalty`, presence and frequency
    penalties, `min_tokens` and `constraint` (which rule tokens out), `temperature`, and then `top_k`, `top_p` and
    `min_p`, each of which keeps the most likely tokens.

    Raises:
        RequestError: A value is outside its range.
    """

    max_tokens: int = 256
    """Most tokens to generate, at least 1."""
    temperature: float = 1.0
    """0 takes the most likely token; 1 samples from the model's own distribution."""
    top_p: float = 1.0
    """Sample among the most likely tokens whose probabilities reach this part of what `top_k` left; 1 for all."""
    top_k: int = 0
    """Sample among so many most likely tokens, of equal ones those of lower ids; 0 for all."""
    min_p: float = 0.0
    """Sample among tokens at least this times as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Positive scores of tokens that the prompt or the text has are divided by this, negative ones multiplied.
    Source: CTRL (arXiv:1909.05858), section 4.1, with the sign rule that all engines use."""
    presence_penalty: float = 0.0
    """Taken from the score of each token that was generated before."""
    frequency_penalty: float = 0.0
    """Taken from the score of a token for each time that it was generated before."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Added to the scores of tokens; `-inf` rules one out."""
    seed: int = 0
    """Same seed, same prompt, same weights: same tokens, whatever else is in the batch."""
    n: int = 1
    """Continuations to generate. The first is the one that `n=1` gives; each of the others has a seed of its own."""
    stop_token_ids: tuple[int, ...] | None = None
    """Tokens that end the text; None for those of the model's configuration."""
    stop: tuple[str, ...] = ()
    """Strings that end the text and are cut from it. Needs a tokenizer."""
    min_tokens: int = 0
    """Before so many tokens no stop token can come and no stop string ends the text."""
    ignore_eos: bool = False
    """The stop tokens of the model's configuration end nothing; those of `stop_token_ids` do."""
    top_logprobs: int = 0
    """Also give the log-probabilities of so many most likely tokens."""
    constraint: Constraint | None = None
    """What the text must look like; see `glmcore.engine.constrain`."""

    def __post_init__(self) -> None:
        _set(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        _set(self, "logit_bias", {int(token): float(bias) for token, bias in dict(self.logit_bias).items()})
        if self.stop_token_ids is not None:
            _set(self, "stop_token_ids", tuple(self.stop_token_ids))
        for name, least, most in _INTEGERS:
            value = getattr(self, name)
            if value is getattr(SamplingParams, name):
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise RequestError(f"{name} must be an integer, got {value!r}")
            if not least <= value <= most:
                raise RequestError(f"{name} must be {_range(least, most)}, got {value}")
        for name, allows, wanted in _NUMBERS:
            value = getattr(self, name)
            if value is getattr(SamplingParams, name):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float | np.floating) or not allows(value):
                raise RequestError(f"{name} must be {wanted}, got {value!r}")
        if self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise RequestError(f"stop must be strings that are not empty, got {self.stop!r}")
        for token, bias in self.logit_bias.items():
            if not (-1000 <= bias <= 1000 or bias == -math.inf):
                raise RequestError(f"logit_bias of token {token} must be in [-1000, 1000] or -inf, got {bias}")

    def for_answer(self, max_tokens: int, seed: int) -> Self:
        """The same with another limit, of at least 1 and `min_tokens`, and another seed, in [0, 2**64).

        What does not change is not checked again: a rollout worker makes these by the thousand.

        Raises:
            RequestError: One of the two is outside its range.
        """
        if max_tokens < max(1, self.min_tokens) or not 0 <= seed < 2**64:
            return replace(self, max_tokens=max_tokens, seed=seed)  # which says what is wrong
        params = copy.copy(self)
        _set(params, "max_tokens", max_tokens)
        _set(params, "seed", seed)
        return params

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse token ids that the model does not have.

        Raises:
            RequestError: An id of `stop_token_ids` or `logit_bias` is outside [0, vocab_size).
        """
        for name, ids in (("stop_token_ids", self.stop_token_ids or ()), ("logit_bias", self.logit_bias)):
            for token in ids:
                if not 0 <= token < vocab_size:
                    raise RequestError(f"{name} has token {token}, outside the vocabulary of {vocab_size}")
        if sum(bias == -math.inf for bias in self.logit_bias.values()) >= vocab_size:
            raise RequestError("logit_bias rules out every token")

    def stop_ids(self, of_model: Iterable[int]) -> frozenset[int]:
        """Tokens that end the text, where the model's own are `of_model`."""
        if self.stop_token_ids is not None:
            return frozenset(self.stop_token_ids)
        return frozenset() if self.ignore_eos else frozenset(of_model)

    def seed_of(self, choice: int) -> int:
        """Seed of one of the `n` continuations, in [0, 2**64)."""
        if choice == 0:
            return self.seed
        return int(_mix(np.array([self.seed], np.uint64) + np.array([choice], np.uint64) * _GAMMA)[0])

    @property
    def edits_scores(self) -> bool:
        """Whether scores are changed before the temperature, so that the model's own distribution is another one."""
        return bool(self.logit_bias or self.penalises or self.min_tokens or self.constraint)

    @property
    def penalises(self) -> bool:
        """Whether earlier tokens change the scores."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def truncates(self) -> bool:
        """Whether only the most likely tokens can come."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)


_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_STREAMS = np.arange(1, 4, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
_INTEGERS = (
    ("max_tokens", 1, math.inf),
    ("top_k", 0, math.inf),
    ("seed", 0, 2**64 - 1),
    ("n", 1, math.inf),
    ("min_tokens", 0, math.inf),
    ("top_logprobs", 0, math.inf),
)
_NUMBERS = (
    ("temperature", lambda value: 0 <= value < math.inf, "a finite number of at least 0"),
    ("top_p", lambda value: 0 < value <= 1, "in (0, 1]"),
    ("min_p", lambda value: 0 <= value <= 1, "in [0, 1]"),
    ("repetition_penalty", lambda value: 0.01 <= value <= 100, "in [0.01, 100]"),
    ("presence_penalty", lambda value: -100 <= value <= 100, "in [-100, 100]"),
    ("frequency_penalty", lambda value: -100 <= value <= 100, "in [-100, 100]"),
)


def uniforms(seeds: npt.NDArray[np.uint64], steps: npt.NDArray[np.int64], stream: int) -> npt.NDArray[np.float64]:
    """Random numbers in [0, 1), each a function of its seed, its step and its stream alone.

    SplitMix64 (Steele et al., OOPSLA 2014) with the generator of a seed and stream started at a mixed place of its
    cycle, so that neighbouring seeds have nothing in common.

    Args:
        seeds: Of each sequence, uint64 [B].
        steps: Tokens that it has generated, int64 [B].
        stream: What the number decides.
    """
    start = _mix(seeds + _STREAMS[stream])
    bits = _mix(start + (steps.astype(np.uint64) + np.uint64(1)) * _GAMMA)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _range(least: float, most: float) -> str:
    return f"at least {least}" if most == math.inf else f"in [{least}, 2**64)"


def _set(params: SamplingParams, name: str, value: Any) -> None:
    object.__setattr__(params, name, value)
