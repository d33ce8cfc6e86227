"""The section of a recipe about making SFT data from the RL policy."""

from pydantic import Field, NonNegativeFloat, PositiveInt

from glmcore.config import Config


class DistillConfig(Config):
    """Which answers of the policy become SFT data, by the steps of GLM-4.5 (arXiv:2508.06471), section 3.1."""

    num_tasks: PositiveInt = 1_024
    """Training tasks that are answered."""
    num_samples: PositiveInt = 8
    """Answers to each."""
    keep_per_task: PositiveInt = 1
    """Most answers kept of a task of which the policy solves `hard_rate` or more."""
    keep_per_hard_task: PositiveInt = 4
    """Most answers kept of a task of which it solves less."""
    hard_rate: float = Field(default=0.5, gt=0, le=1)
    min_reward: float = 1.0
    min_parts: dict[str, float] = Field(default_factory=dict[str, float])
    """Least of named parts of the reward, such as `{ right = 1.0 }`: success, where the reward is more than that."""
    drop_shortest_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of tasks to drop, those with the shortest answers: easy ones teach little."""
    min_tokens: PositiveInt = 1
    """Shorter answers are dropped."""
    max_tokens: PositiveInt | None = None
    """Longer ones are dropped too."""
    max_turns: PositiveInt | None = None
    """Episodes with more messages of the policy are dropped."""
    max_repetition: float = Field(default=0.5, gt=0, le=1)
    """Answers in which a larger share of the 8-grams has come before are dropped as repetitive."""
    temperature: NonNegativeFloat | None = None
    """None for that of training."""
    seed: int = Field(default=0, ge=0)
