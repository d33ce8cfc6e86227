"""The next token of every sequence of a batch, each by its own parameters.

Shapes: B sequences of a step, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from glmcore.engine.sampling import SamplingParams


@dataclass(frozen=True)
class Drawn:
    """What a step drew."""

    tokens: Tensor
    """int64 [B], on the CPU."""
    logprobs: Tensor
    """Log-probability of each token in the model's own distribution at the temperature of its sequence (at 1 where that
    is 0), float32 or wider [B]."""
    top_logprobs: dict[int, dict[int, float]] = field(default_factory=dict)
    """For each place of the batch that asked: the most likely tokens of the same distribution, most likely first."""


@dataclass
class _Slot:
    params: SamplingParams
    uniforms: np.ndarray
    step: int = 0


class Sampler:
    """Draws tokens for sequences that come and go.

    Args:
        vocab_size: V.
        device: Where the scores are.
    """

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self._slots: dict[int, _Slot] = {}
        self._next = 0

    def admit(
        self, params: SamplingParams, prompt_ids: Sequence[int], *, stop_ids: Iterable[int] = (), choice: int = 0
    ) -> int:
        """Take a sequence in; the slot that it has until `release`."""
        self._next += 1
        self._slots[self._next] = _Slot(params, params.uniforms(choice))
        return self._next

    def release(self, slot: int) -> None:
        """Forget a sequence."""
        del self._slots[slot]

    @torch.no_grad()
    def draw(self, logits: Tensor, slots: Sequence[int]) -> Drawn:
        """Draw the next token of each sequence of a step, and remember it.

        Args:
            logits: Scores of the model, float32 or wider [B, V]; overwritten.
            slots: Slot of each sequence, distinct, [B].
        """
        states = [self._slots[slot] for slot in slots]
        uniform = torch.tensor([state.uniforms[state.step] for state in states], dtype=torch.float64)
        for state in states:
            state.step += 1
        temperature = torch.tensor([state.params.temperature for state in states])
        top_p = torch.tensor([state.params.top_p for state in states])
        tokens, logprobs = sample(logits.cpu(), uniform, temperature, top_p)
        return Drawn(tokens, logprobs)


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
