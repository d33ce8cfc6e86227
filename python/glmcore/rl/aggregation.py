"""The weight of each token in the loss of an update."""

from typing import Literal

import numpy as np

Aggregation = Literal["token_mean", "sequence_mean", "fixed_length"]


def token_weights(lengths: np.ndarray, aggregation: Aggregation, max_tokens: int) -> np.ndarray:
    """Weight of every token of each answer of an update, float64 [N]; the loss is the weighted sum over tokens.

    Args:
        lengths: Tokens with a loss of each answer, int [N]; an answer without any counts as no answer.
        aggregation: `token_mean`: every token alike, as in the GLM-4.5 report (arXiv:2508.06471), section 3.2, and
            DAPO (arXiv:2503.14476), section 3.3. `sequence_mean`: every answer alike, as in GRPO (arXiv:2402.03300),
            equation 3. `fixed_length`: every answer's sum over the most tokens of an answer, as in Dr. GRPO
            (arXiv:2503.20783), section 3.2.
        max_tokens: Most tokens of an answer.
    """
    answers = max(int((lengths > 0).sum()), 1)
    if aggregation == "token_mean":
        return np.full(len(lengths), 1.0 / max(int(lengths.sum()), 1))
    if aggregation == "fixed_length":
        return np.full(len(lengths), 1.0 / (answers * max_tokens))
    return 1.0 / (answers * np.maximum(lengths, 1))
