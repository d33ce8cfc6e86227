"""Whether the reward has stopped rising."""

from collections.abc import Sequence

import numpy as np

from glmcore.rl.curriculum.config import PlateauConfig


class Plateau:
    """Watches the mean reward of every step since it was last reset."""

    def __init__(self, config: PlateauConfig) -> None:
        self.config = config
        self.rewards: list[float] = []
        """Of the last two windows."""

    def add(self, reward: float) -> bool:
        """Take note of a step's mean reward; True when it is stable."""
        self.rewards = [*self.rewards, reward][-2 * self.config.window :]
        return is_stable(self.rewards, self.config)

    def reset(self) -> None:
        """Begin anew, since what is trained on has changed."""
        self.rewards = []


def is_stable(rewards: Sequence[float], config: PlateauConfig) -> bool:
    """Whether the mean of the last window is less than `min_rise` above that of the window before.

    Args:
        rewards: Mean rewards of successive steps; fewer than two windows are not stable.
        config: Width and rise.
    """
    window = config.window
    if len(rewards) < 2 * window:
        return False
    return float(np.mean(rewards[-window:]) - np.mean(rewards[-2 * window : -window])) < config.min_rise
