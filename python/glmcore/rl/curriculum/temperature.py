"""The sampling temperature, raised when the reward has become stable."""

from collections.abc import Callable, Mapping
from typing import Any

from glmcore.rl.curriculum.config import TemperatureConfig
from glmcore.rl.curriculum.plateau import Plateau


def choose_temperature(rewards: Mapping[float, float], max_loss: float) -> float:
    """The largest temperature whose mean reward is within `max_loss`, as a share, of the best one's.

    Source: GLM-4.5 (arXiv:2508.06471), section 3.2: the largest value that costs no more than 1% of performance.
    """
    best = max(rewards.values())
    return max(temperature for temperature, reward in rewards.items() if reward >= best * (1 - max_loss))


class DynamicTemperature:
    """The temperature of every step.

    Args:
        initial: Temperature until the reward is stable for the first time.
        config: None to keep the initial one.
    """

    def __init__(self, initial: float, config: TemperatureConfig | None) -> None:
        self.value = initial
        self.config = config
        self._plateau = None if config is None else Plateau(config.plateau)

    def finish_step(self, reward: float, held_out_reward: Callable[[float], float]) -> dict[float, float] | None:
        """Take note of a step's mean reward, and choose anew if it is stable.

        Args:
            reward: Mean reward of what was sampled.
            held_out_reward: Mean reward of the present weights on held-out tasks at a temperature.

        Returns:
            Held-out reward of every candidate, the present temperature among them, if they were tried.
        """
        if self.config is None or self._plateau is None or not self._plateau.add(reward):
            return None
        tried = {value: held_out_reward(value) for value in sorted({*self.config.candidates, self.value})}
        self.value = choose_temperature(tried, self.config.max_loss)
        self._plateau.reset()
        return tried

    def state_dict(self) -> dict[str, Any]:
        """The state, plain JSON values."""
        return {"value": self.value, "rewards": self._plateau.rewards if self._plateau else []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self.value = float(state["value"])
        if self._plateau:
            self._plateau.rewards = list(state["rewards"])
