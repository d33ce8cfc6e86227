"""Advantages of the rollouts of one group over each other."""

import numpy as np


def group_advantages(rewards: np.ndarray, group_ids: np.ndarray, *, normalize: bool) -> np.ndarray:
    """Reward of each rollout minus the mean of its group, float32 [N].

    Groups are told apart by id, so they may have different sizes and come in any order. With `normalize` the
    difference is divided by the group's standard deviation (GRPO, arXiv:2402.03300, section 4.1.2); without, it is the
    agentic objective of the GLM-4.5 report (arXiv:2508.06471), section 3.3. A group of equal rewards gets zeros.

    Args:
        rewards: float [N].
        group_ids: int [N].
        normalize: Divide by the standard deviation of the group.
    """
    _, index = np.unique(group_ids, return_inverse=True)
    count = np.bincount(index)
    rewards = rewards.astype(np.float64)
    centred = rewards - (np.bincount(index, rewards) / count)[index]
    if normalize:
        deviation = np.sqrt(np.bincount(index, centred**2) / count)
        centred = np.divide(centred, deviation[index], out=np.zeros_like(centred), where=deviation[index] > 1e-6)
    return centred.astype(np.float32)
