"""What an engine gives back: piece by piece, or as a whole."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Delta:
    """What one step added to one choice of a request."""

    index: int
    """Which of the request's `n` continuations."""
    token_ids: list[int] = field(default_factory=list)
    """New tokens, the stop token included."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each new token in the model's own distribution at the request's temperature."""
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    """The most likely tokens at each new place; empty where the request does not ask for them."""
    policy_versions: list[int] = field(default_factory=list)
    """Version of the weights that drew each new token."""
    text: str = ""
    """Text that has become certain: whole characters, without special tokens; empty without a tokenizer."""
    finish_reason: str | None = None
    """`stop`, `length` or `abort` in the last delta of a choice; None while it goes on."""
    stop: int | str | None = None
    """The stop token or stop string that ended it."""
    cached_tokens: int = 0
    """Prompt tokens that were not computed again, told in the first delta of a choice."""
    experts: np.ndarray | None = None
    """See `Generation.experts`; told in the last delta of a choice."""


@dataclass
class Generation:
    """One whole continuation."""

    token_ids: list[int] = field(default_factory=list)
    """Generated tokens, the stop token included."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each token; see `Delta.logprobs`."""
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    """See `Delta.top_logprobs`."""
    policy_versions: list[int] = field(default_factory=list)
    """Version of the weights that drew each token."""
    text: str = ""
    """Their text, without special tokens and without the stop string; empty without a tokenizer."""
    finish_reason: str = "abort"
    """`stop`, `length`, or `abort` where somebody ended it early."""
    stop: int | str | None = None
    """The stop token or stop string that ended it."""
    cached_tokens: int = 0
    """Prompt tokens that were not computed again."""
    experts: np.ndarray | None = None
    """With `EngineConfig.record_experts`: the experts of each token of prompt and continuation but the last, which no
    layer has seen, when it was computed first, in each decoder layer that has some, in no order, uint8 or uint16
    [tokens - 1, layers, K]. None if nothing was recorded, or computed."""

    @property
    def policy_version(self) -> int:
        """The newest version that drew a token; -1 without tokens."""
        return self.policy_versions[-1] if self.policy_versions else -1

    def add(self, delta: Delta) -> None:
        """Take in the next piece."""
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.top_logprobs += delta.top_logprobs
        self.policy_versions += delta.policy_versions
        self.text += delta.text
        self.cached_tokens += delta.cached_tokens
        if delta.finish_reason is not None:
            self.finish_reason, self.stop = delta.finish_reason, delta.stop
            self.experts = delta.experts


@dataclass(frozen=True)
class EngineStats:
    """What an engine does at this moment, and what it has done since it was made."""

    running: int
    """Sequences with tokens in the cache: being read or generated."""
    waiting: int
    """Sequences that wait for their turn or, preempted, for their return."""
    cache_used: float
    """Part of the cache that running sequences hold, in [0, 1]."""
    cache_tokens: int
    """Tokens that the cache can hold."""
    reusable_tokens: int
    """Tokens of ended sequences that are kept for prompts that begin alike."""
    prompt_tokens: int
    """Prompt tokens of all requests that have started."""
    cached_tokens: int
    """Of these, those that were not computed because the cache had them."""
    generated_tokens: int
    """Tokens drawn."""
    preemptions: int
    """Times that a sequence lost its place in the cache for want of memory."""
    policy_version: int
    """Of the weights."""
    drafts: int = 0
    """Tokens that the MTP layer has proposed."""
    kept_drafts: int = 0
    """Of these, those that stayed."""
