"""The section of a recipe that chooses an environment, `[rl.environment]`, and bounds its episodes."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config


class EpisodeLimits(Config):
    """What an episode may take. Whatever goes beyond ends it; what is the environment's fault fails it."""

    max_turns: PositiveInt = 64
    """Messages of the assistant."""
    max_context: PositiveInt | None = None
    """Tokens of the whole conversation; None for what the model can read."""
    max_observation_chars: PositiveInt = 65_536
    """Most characters that the environment says between two messages of the assistant."""
    max_branches: NonNegativeInt = 8
    """Sub-agents of an episode, theirs included; more are refused in words."""
    step_seconds: PositiveFloat = 60.0
    """Most that the environment takes for one answer."""
    episode_seconds: PositiveFloat = 3_600.0
    """Most that the whole episode takes."""
    reward_range: Annotated[tuple[float, float], Field(strict=False)] = (0.0, 1.0)
    """Where the reward of an episode lies; one outside is the environment's fault."""

    @model_validator(mode="after")
    def _range_is_ordered(self) -> Self:
        if not self.reward_range[0] < self.reward_range[1]:
            raise ValueError(f"reward_range={list(self.reward_range)} must be a lower and a higher number")
        return self

    def within(self, context: int) -> "EpisodeLimits":
        """The same for a model that reads `context` tokens."""
        return self.model_copy(update={"max_context": min(context, self.max_context or context)})


class _Environment(Config):
    """What all environments have in common."""

    limits: EpisodeLimits = EpisodeLimits()
    thinking: bool = True
    """False asks the model to answer without thinking."""

    def check_tasks(self, names: list[str]) -> None:
        """Refuse `rl.tasks` that this environment cannot have.

        Raises:
            ValueError: They do not fit.
        """
        if names:
            raise ValueError(f"the environment {getattr(self, 'name', '')!r} has no parts to name in rl.tasks")


class ReasoningGymConfig(_Environment):
    """Questions of `reasoning-gym`; `rl.tasks` names its generators."""

    name: Literal["reasoning_gym"] = "reasoning_gym"
    options: dict[str, dict[str, Any]] = Field(default_factory=dict[str, dict[str, Any]])
    """Difficulty of a generator, as `reasoning-gym` has it, by its name."""

    def check_tasks(self, names: list[str]) -> None:
        """At least one generator."""
        if not names:
            raise ValueError("rl.tasks names no generator of reasoning-gym, such as 'chain_sum'")
        unknown = sorted(set(self.options) - set(names))
        if unknown:
            raise ValueError(f"rl.environment.options are given for {unknown}, which are not in rl.tasks")


class CustomConfig(_Environment):
    """An environment of the user's own."""

    name: Literal["custom"] = "custom"
    factory: str = Field(pattern=r"^[\w.]+:\w+$")
    """`package.module:function`; the function takes `options` and `rl.tasks` and gives a `Family`."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])

    def check_tasks(self, names: list[str]) -> None:
        """The factory judges."""


EnvironmentConfig = Annotated[ReasoningGymConfig | CustomConfig, Field(discriminator="name")]
"""One of them, by `name`."""
