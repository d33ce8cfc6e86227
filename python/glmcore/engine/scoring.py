"""How likely a model finds a text, token by token, from one forward pass.

Shapes: T tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from glmcore.model.glm import Glm
from glmcore.model.layout import DocumentLayout

ROWS = 256
"""Places whose scores over the vocabulary are held at a time."""


@dataclass(frozen=True)
class TextScores:
    """What a model says of each token of a text, given those before it."""

    logprobs: list[float | None]
    """Log-probability of each token at temperature 1; None for the first, which nothing precedes, [T]."""
    top_logprobs: list[dict[int, float] | None]
    """The most likely tokens at each place, most likely first; None at the first place, [T]."""


@torch.no_grad()
def score_text(model: Glm, ids: Sequence[int], num_top: int) -> TextScores:
    """Score a text.

    Args:
        model: In evaluation.
        ids: Token ids, [T], not empty.
        num_top: Most likely tokens to tell at each place.
    """
    device = model.lm_head.weight.device
    tokens = torch.tensor(ids, device=device)
    layout = DocumentLayout.from_cu_seqlens(np.array([0, len(ids)], np.int32))
    hidden = model(tokens, torch.arange(len(ids), device=device), layout).hidden
    logprobs: list[float | None] = [None]
    tops: list[dict[int, float] | None] = [None]
    for start in range(0, len(ids) - 1, ROWS):
        end = min(start + ROWS, len(ids) - 1)
        scores = model.logits(hidden[start:end]).float().log_softmax(-1)  # [rows, V]
        logprobs += scores.gather(1, tokens[start + 1 : end + 1, None]).squeeze(1).tolist()
        best = scores.topk(num_top, dim=-1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        tops += [dict(zip(token_ids, values, strict=True)) for token_ids, values in pairs]
    return TextScores(logprobs, tops)
