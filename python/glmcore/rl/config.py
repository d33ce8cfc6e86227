"""The section of a recipe that describes reinforcement learning."""

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config
from glmcore.train.config import OptimizerConfig


class RLConfig(Config):
    """Group-relative policy optimisation without a KL term, on problems whose answers a program verifies.

    The GLM-4.5 report (arXiv:2508.06471), section 3.2, gives the method; group size, clipping, rates and batch are
    not published.
    """

    tasks: list[str] = Field(min_length=1)
    """Reasoning tasks to draw problems from."""
    num_steps: PositiveInt
    groups_per_step: PositiveInt = 16
    """Problems of one update."""
    rollouts_per_group: int = Field(default=8, ge=2)
    max_response_tokens: PositiveInt = 96
    temperature: PositiveFloat = 1.0
    updates_per_step: PositiveInt = 1
    """Optimiser steps on the rollouts of one step, each on its share of the groups."""
    clip_low: PositiveFloat = 0.2
    """The probability ratio is clipped below at `1 - clip_low`."""
    clip_high: PositiveFloat = 0.28
    """The probability ratio is clipped above at `1 + clip_high`."""
    importance_cap: PositiveFloat = 2.0
    """Upper clamp of the weight that corrects for sampling from the quantised copy."""
    share_prefixes: bool = False
    """Run what rollouts of a micro-batch have in common, such as their prompt, once for all of them. Losses and
    gradients are the same to rounding; it pays where prompts are long beside the answers."""
    normalize_advantage: bool = True
    """Divide by the group's standard deviation; only subtract the mean otherwise."""
    optimizer: OptimizerConfig
    learning_rate: PositiveFloat
    """Reached after `warmup_steps` in a straight line, and kept."""
    warmup_steps: PositiveInt = 1
    evaluation_problems: PositiveInt = 512
    """Held-out problems, each sampled once at `temperature`, before and after."""
    checkpoint_every_steps: PositiveInt = 5

    @model_validator(mode="after")
    def _updates_divide_groups(self) -> Self:
        if self.groups_per_step % self.updates_per_step:
            raise ValueError(
                f"updates_per_step={self.updates_per_step} must divide groups_per_step={self.groups_per_step}"
            )
        return self
