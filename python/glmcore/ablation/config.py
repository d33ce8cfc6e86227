"""The file of an ablation."""

from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config, merge
from glmcore.errors import ConfigError

COLUMNS = ("avg", "pass", "short", "length", "truncated")
"""What a column of the table may show of the last evaluation; other names are those of metrics of a step."""


class ArmConfig(Config):
    """One way to train."""

    name: str = Field(pattern=r"^[\w.-]+$")
    recipe: dict[str, Any] = Field(default_factory=dict[str, Any])
    """What this arm adds to the recipe, in the recipe's own sections."""


class AblationConfig(Config):
    """Arms that differ in one thing, each trained from the same model with every seed."""

    title: str
    published: str
    """What others have found, with the source."""
    dir: str = "runs/ablations"
    """Directory of all ablations: their common model is trained once, in `base`."""
    base: str = "base.toml"
    """Recipe of the common model, beside this file."""
    seeds: list[NonNegativeInt] = Field(default=[0, 1, 2], min_length=1)
    jobs: PositiveInt = 1
    """Runs at the same time, each in a process of its own."""
    probe: bool = False
    """Find the difficulty of the tasks with the common model, before all arms."""
    recipe: dict[str, Any] = Field(default_factory=dict[str, Any])
    """What all arms add to the base recipe."""
    arms: list[ArmConfig] = Field(min_length=2)
    """The first is what the others are compared with."""
    suite: str
    """Suite of `rl.evaluation` that counts."""
    columns: list[str] = Field(default=["avg", "pass"], min_length=1)
    """Of the table; see `COLUMNS`. Metrics are means over the last `last_steps` steps."""
    last_steps: PositiveInt = 10
    target: float = Field(default=0.8, gt=0, le=1)
    """Reward whose first reaching is told, in steps and in seconds, by the mean over `last_steps` steps."""

    compare_seconds: bool = False
    """Tell the ratio of wall times: for arms that differ in it, run one at a time on a quiet machine."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("arms and seeds must be distinct")
        return self


def load_ablation(settings: list[str]) -> tuple[AblationConfig, Path]:
    """An ablation from a file and overrides `key=value`, and the folder of the file.

    Raises:
        ConfigError: There is no file, or a key is unknown or has a wrong value.
    """
    files = [Path(setting) for setting in settings if "=" not in setting]
    if len(files) != 1:
        raise ConfigError("name one file of an ablation, such as recipes/ablations/aggregation.toml")
    values = merge(files, [setting for setting in settings if "=" in setting])
    return AblationConfig.from_dict(values, str(files[0])), files[0].parent
