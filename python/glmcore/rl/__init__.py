"""Reinforcement learning. `run` goes through the RL stage of a recipe; the rest is in the modules."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glmcore.recipe import Recipe


def run(config: "Recipe") -> None:
    """Run the RL stage of a recipe on its trained model; see `glmcore.rl.stage.run`."""
    from glmcore.rl import stage  # torch is loaded here, not with the package

    stage.run(config)
