"""The section of a recipe about the trajectories that are kept to be looked at."""

from pydantic import NonNegativeInt, PositiveInt

from glmcore.config import Config


class TrajectoryLogConfig(Config):
    """Some groups of some steps, with all that the trainer knew of their tokens."""

    every_steps: PositiveInt = 10
    groups: NonNegativeInt = 2
    """Groups of such a step; 0 keeps nothing."""
    keep_steps: PositiveInt = 20
    """Steps that are kept; the oldest go."""
