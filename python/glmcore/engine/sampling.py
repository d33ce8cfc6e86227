"""What a request asks of sampling."""

from dataclasses import dataclass

import numpy as np

from glmcore.errors import RequestError


@dataclass(frozen=True)
class SamplingParams:
    """What a request asks of sampling."""

    max_tokens: int = 256
    """Most tokens to generate, at least 1."""
    temperature: float = 1.0
    """0 takes the most likely token; 1 samples from the model's own distribution."""
    top_p: float = 1.0
    """Sample among the most likely tokens whose probabilities reach this sum; 1 for all."""
    seed: int = 0
    """Same seed, same prompt, same weights: same tokens, whatever else is in the batch."""
    n: int = 1
    """Continuations to generate. The first is the one that `n=1` gives; each of the others has a seed of its own."""
    stop_token_ids: tuple[int, ...] | None = None
    """Tokens that end the text; None for those of the model's configuration."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise RequestError(f"temperature must be a finite number of at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.seed < 2**64:
            raise RequestError(f"seed must be in [0, 2**64), got {self.seed}")
        if self.n < 1:
            raise RequestError(f"n must be at least 1, got {self.n}")

    def uniforms(self, choice: int = 0) -> np.ndarray:
        """The random numbers in [0, 1) that decide each of the tokens of a continuation, float64 [max_tokens]."""
        return np.random.Generator(np.random.Philox(key=self.seed + (choice << 64))).random(self.max_tokens)
