"""Advantages of the rollouts of one group over each other."""

from typing import Literal

import numpy as np

Estimator = Literal["grpo", "centred", "rloo"]
MIN_DEVIATION = 1e-6
"""Below it a group counts as of equal rewards."""


def group_advantages(rewards: np.ndarray, group_ids: np.ndarray, estimator: Estimator) -> np.ndarray:
    """How much better each rollout is than its group, float32 [N].

    Groups are told apart by id, so they may have different sizes and come in any order. A group of one, or of equal
    rewards, gets zeros.

    Args:
        rewards: float [N].
        group_ids: int [N].
        estimator: `grpo`: reward minus the group's mean, over its standard deviation (arXiv:2402.03300, section 4.1.2).
            `centred`: reward minus mean, as in the agentic objective of the GLM-4.5 report (arXiv:2508.06471, section
            3.3) and in Dr. GRPO (arXiv:2503.20783, section 3.2). `rloo`: reward minus the mean of the others
            (arXiv:2402.14740, section 3.2), which is `centred` times n / (n - 1).
    """
    _, index = np.unique(group_ids, return_inverse=True)
    count = np.bincount(index)
    rewards = rewards.astype(np.float64)
    advantages = rewards - (np.bincount(index, rewards) / count)[index]
    if estimator == "grpo":
        deviation = np.sqrt(np.bincount(index, advantages**2) / count)[index]
        advantages = np.divide(advantages, deviation, out=np.zeros_like(rewards), where=deviation > MIN_DEVIATION)
    elif estimator == "rloo":
        others = (count - 1)[index]
        advantages = np.divide(advantages * count[index], others, out=np.zeros_like(rewards), where=others > 0)
    return advantages.astype(np.float32)


def has_signal(rewards: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """Whether a rollout's group has rewards that differ, bool [N]: the others teach nothing.

    Source: dynamic sampling of DAPO (arXiv:2503.14476), section 3.2; slime drops groups of deviation 1e-6 or less.
    """
    _, index = np.unique(group_ids, return_inverse=True)
    count = np.bincount(index)
    centred = rewards.astype(np.float64) - (np.bincount(index, rewards) / count)[index]
    return (np.sqrt(np.bincount(index, centred**2) / count) > MIN_DEVIATION)[index]
