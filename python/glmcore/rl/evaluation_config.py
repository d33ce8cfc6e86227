"""The section of a recipe about evaluation while reinforcement learning goes on."""

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config


class SuiteConfig(Config):
    """Held-out tasks that are answered several times each."""

    name: str = Field(pattern=r"^[\w.-]+$")
    tasks: list[str] = Field(default_factory=list[str])
    """Parts of the recipe's environment, as in `rl.tasks`; other ones than those of training are welcome."""
    num_tasks: PositiveInt = 128
    num_samples: PositiveInt = 4
    """Answers to each task: k of avg@k, and the largest k of pass@k."""
    temperature: NonNegativeFloat | None = None
    """None for that of training at the moment."""
    max_response_tokens: PositiveInt | None = None
    """None for the longest of training at the moment."""
    short_tokens: PositiveInt = 8
    """Most tokens of an answer that counts as a short template, tags and end included."""


class EvaluationConfig(Config):
    """Suites, run before the first step, after every `every_steps` steps, and after the last."""

    every_steps: PositiveInt
    suites: list[SuiteConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [suite.name for suite in self.suites]
        if len(set(names)) < len(names):
            raise ValueError(f"suites must have different names, got {names}")
        return self
