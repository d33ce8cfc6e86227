"""What the length of an answer does to its reward and to its place in the loss."""

import numpy as np

from glmcore.rl.config import OverlongConfig


def length_penalty(lengths: np.ndarray, max_tokens: int, tolerated: int) -> np.ndarray:
    """What is added to the reward of an answer for its length, float64 [N] in [-1, 0].

    0 up to `max_tokens - tolerated` tokens, then falling in a straight line to -1 at `max_tokens`.
    Source: soft overlong punishment of DAPO (arXiv:2503.14476), equation 13.

    Args:
        lengths: Tokens of each answer, int [N].
        max_tokens: Most tokens of an answer.
        tolerated: Tokens before the limit over which the penalty grows, in [1, max_tokens].
    """
    return -np.clip((lengths - (max_tokens - tolerated)) / tolerated, 0.0, 1.0)


def shaped_rewards(rewards: np.ndarray, lengths: np.ndarray, max_tokens: int, config: OverlongConfig) -> np.ndarray:
    """Rewards that advantages are made of, float64 [N]; the reward that is reported is the environment's.

    Args:
        rewards: float [N].
        lengths: Tokens of each answer, int [N].
        max_tokens: Most tokens of an answer.
        config: Whether the penalty is wanted.
    """
    if config.penalty_tokens is None:
        return rewards.astype(np.float64)
    return rewards + length_penalty(lengths, max_tokens, config.penalty_tokens)


def in_loss(finish_reasons: list[str | None], config: OverlongConfig) -> np.ndarray:
    """Whether an answer's tokens carry a loss, bool [N]: with the filter those that were cut off do not.

    Source: overlong filtering of DAPO (arXiv:2503.14476), section 3.4.
    """
    return np.array([not (config.filter and reason == "length") for reason in finish_reasons], np.bool_)
