"""How the next token is drawn.

Shapes: B sequences, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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

    def uniforms(self) -> np.ndarray:
        """The random numbers in [0, 1) that decide each of the tokens, float64 [max_tokens]."""
        return np.random.Generator(np.random.Philox(key=self.seed)).random(self.max_tokens)


def sample(logits: Tensor, uniform: Tensor, temperature: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a token for each sequence by inverting the cumulative distribution at `uniform`.

    Args:
        logits: float32 [B, V].
        uniform: Random numbers in [0, 1), float64 [B].
        temperature: float32 [B]; 0 takes the most likely token.
        top_p: float32 [B].

    Returns:
        Tokens, int64 [B], and their log-probabilities at the given temperature before `top_p`, float32 [B]
        (at temperature 1 where it is 0).
    """
    greedy = temperature == 0
    logprobs = (logits / temperature.masked_fill(greedy, 1.0)[:, None]).log_softmax(-1)
    probability = logprobs.double().exp()
    if bool((top_p < 1).any()):
        probability = _keep_nucleus(probability, top_p)
    cumulative = probability.cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    # Rounding can put the target at the very end of the distribution.
    token = torch.where(greedy, logits.argmax(-1), token.clamp(max=logits.shape[-1] - 1))
    return token, logprobs.gather(1, token[:, None]).squeeze(1)


def _keep_nucleus(probability: Tensor, top_p: Tensor) -> Tensor:
    """Zero all but the most likely tokens whose probabilities reach `top_p`; at least one stays."""
    ordered, index = probability.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p[:, None], 0.0)
    return torch.zeros_like(probability).scatter_(1, index, ordered)
