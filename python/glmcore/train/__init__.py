"""Training stages. `run` goes through those of a recipe; the rest is in the modules."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glmcore.recipe import Recipe


def run(config: "Recipe", stage: str | None = None) -> None:
    """Run the training stages of a recipe whose data has been prepared; see `glmcore.train.stages.run`."""
    from glmcore.train import stages  # torch is loaded here, not with the package

    stages.run(config, stage)
