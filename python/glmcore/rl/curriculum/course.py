"""What changes from step to step: tasks, temperature, length of answers, and how many groups are sampled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glmcore.rl.config import RLConfig
from glmcore.rl.curriculum.sampling import DynamicSampling, GroupQuota, teaches
from glmcore.rl.curriculum.temperature import DynamicTemperature
from glmcore.rl.tasks import TaskSource


@dataclass(frozen=True)
class StepSettings:
    """How a step is sampled."""

    temperature: float
    max_response_tokens: int


class Course:
    """The decisions between steps, in one place for a loop to call.

    A loop asks for `settings`, takes tasks from `tasks` as `quota` tells, calls `finish_step` with all that was
    sampled, and puts `state_dict` into its checkpoints. What follows depends on those calls alone.

    Args:
        config: The RL section of the recipe.
        tasks: Where tasks come from.
    """

    def __init__(self, config: RLConfig, tasks: TaskSource) -> None:
        self.config = config
        self.tasks = tasks
        self.temperature = DynamicTemperature(config.temperature, config.dynamic_temperature)
        self.sampling = DynamicSampling(config.dynamic_sampling, config.groups_per_step)

    def settings(self, step: int) -> StepSettings:
        """How to sample a step, counted from 1."""
        shorter = [stage.max_tokens for stage in self.config.length_stages if step <= stage.last_step]
        return StepSettings(self.temperature.value, shorter[0] if shorter else self.config.max_response_tokens)

    def quota(self) -> GroupQuota | None:
        """The rounds of sampling of a step; None without dynamic sampling, where all groups are trained on."""
        return None if self.config.dynamic_sampling is None else self.sampling.quota()

    def finish_step(
        self, step: int, groups: Sequence[tuple[str, Sequence[float]]], held_out_reward: Callable[[float], float]
    ) -> dict[str, float]:
        """Take note of a step.

        Args:
            step: Its number, from 1.
            groups: Task id and rewards of every group that was sampled for it, in the order of the tasks.
            held_out_reward: Mean reward of the present weights on held-out tasks at a temperature; only called when
                the temperature is chosen anew.

        Returns:
            Figures to log.
        """
        for task_id, rewards in groups:
            self.tasks.observe(task_id, rewards)
        rewards = [list(rewards) for _, rewards in groups]
        reward = float(np.mean([np.mean(group) for group in rewards]))
        figures = {
            "sampled_groups": float(len(groups)),
            "sampled_reward_mean": reward,
            "teaching_groups": float(np.mean([teaches(group) for group in rewards])),
            "solved_groups": float(np.mean([min(group) >= 1.0 for group in rewards])),
            "failed_groups": float(np.mean([max(group) <= 0.0 for group in rewards])),
            "temperature": self.temperature.value,
            "max_response_tokens": float(self.settings(step).max_response_tokens),
        }
        self.sampling.finish_step(rewards)
        self.tasks.finish_step(step, reward)
        tried = self.temperature.finish_step(reward, held_out_reward)
        for value, found in (tried or {}).items():
            figures[f"held_out_reward_at_{value:g}"] = found
        return figures | self.tasks.figures()

    def state_dict(self) -> dict[str, Any]:
        """The state, plain JSON values."""
        return {
            "tasks": self.tasks.state_dict(),
            "temperature": self.temperature.state_dict(),
            "sampling": self.sampling.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self.tasks.load_state_dict(state["tasks"])
        self.temperature.load_state_dict(state["temperature"])
        self.sampling.load_state_dict(state["sampling"])
