"""The recipe: one TOML file that describes a run from raw text to the exported model.

Only the sections' schemas are imported here, so a recipe is read and checked in a moment.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config, merge
from glmcore.data.config import DataConfig, FillInTheMiddleConfig, HeldOutConfig
from glmcore.errors import ConfigError
from glmcore.model.config import GlmConfig
from glmcore.model.parallel.config import ParallelConfig
from glmcore.rl.config import RLConfig
from glmcore.train.config import TrainConfig

RECIPES = Path(__file__).parent / "recipes"


class RunConfig(Config):
    """Where a run lives and what makes it repeatable."""

    dir: str
    """Directory of the run; made if it is not there, gone on with if it is."""
    seed: NonNegativeInt = 0
    num_threads: NonNegativeInt = 0
    """Threads of PyTorch; 0 takes every core. A run keeps the number it was started with, unless another one is given:
    sums depend on it. The processes of one machine share them out."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the training stages are computed; `auto` takes GPUs if there are any, one for each process."""


class CorpusConfig(Config):
    """Raw text of the run."""

    path: str | None = None
    """A user's own file, directory, pattern or URL, read as a source `user` of kind `mixed`; see `data.sources`."""
    prose_bytes: NonNegativeInt = 3_000_000
    code_bytes: NonNegativeInt = 3_000_000
    fill_in_the_middle: FillInTheMiddleConfig = FillInTheMiddleConfig()
    """Of source `code`."""
    repository_bytes: NonNegativeInt = 3_000_000
    git_bytes: NonNegativeInt = 500_000
    problems: dict[str, PositiveInt] = Field(min_length=1)
    """Reasoning problems of each task; a task with fewer distinct questions gives what it has."""
    lookups: NonNegativeInt = 0
    """Questions that are answered with one search or two, as conversations with tool calls and as exercises in reading;
    there are about 6,800."""
    direct_answer_share: NonNegativeFloat = Field(default=0.5, le=1.0)
    """Share of the sft problems that are answered without thinking, and of the lookups with a search or two too few."""
    user_weight: NonNegativeFloat = 1.0
    """Weight of source `user` in every pretrain stage, when there is one."""


class TokenizerConfig(Config):
    """The tokenizer that the run trains, or takes."""

    path: str | None = None
    """A tokenizer.json, a `.glmtok`, or a directory with a tokenizer.json, taken instead of training one."""
    vocab_size: PositiveInt = 8_192
    """All ids, the 36 special tokens among them."""
    training_bytes: PositiveInt = 6_000_000
    """Text that the merges are learned from, spread evenly over the sources."""


class DataRecipe(Config):
    """What data preparation needs of a recipe."""

    run: RunConfig
    corpus: CorpusConfig | None = None
    """The built-in corpus, if it is wanted."""
    data: DataConfig | None = None
    """Own sources."""
    tokenizer: TokenizerConfig
    held_out: HeldOutConfig = HeldOutConfig()

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if self.corpus is None and self.data is None:
            raise ValueError("no source of documents: add [[data.sources]], or [corpus] for the built-in corpus")
        return self

    @property
    def own_data(self) -> DataConfig | None:
        """Own sources, the user's text of `corpus.path` among them, if there are any."""
        if self.corpus is None or self.corpus.path is None:
            return self.data
        return DataConfig.with_user_text(self.data, self.corpus.path)


class Recipe(DataRecipe):
    """A whole run."""

    model: GlmConfig
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig
    rl: RLConfig

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.tokenizer.path is None and self.model.vocab_size < self.tokenizer.vocab_size:
            raise ValueError(
                f"model.vocab_size={self.model.vocab_size} is below tokenizer.vocab_size={self.tokenizer.vocab_size}"
            )
        from_corpus = self.corpus is not None and self.rl.environment.name == "reasoning_gym"
        unknown = sorted(set(self.rl.tasks) - set(self.corpus.problems)) if self.corpus and from_corpus else []
        if unknown:
            raise ValueError(f"rl.tasks {unknown} are not in corpus.problems")
        if self.train.validation is not None and not self.held_out.share:
            raise ValueError("train.validation needs held-out documents: set held_out.share, such as 0.01")
        return self


def load_data_recipe(files: Sequence[Path], overrides: Sequence[str] = ()) -> DataRecipe:
    """A recipe that is whole or has only what data preparation needs; see `Config.load`.

    Raises:
        ConfigError: A file cannot be read, or a key is unknown, missing or has a wrong value.
    """
    values = merge(files, overrides)
    kind = Recipe if {"model", "train", "rl"} & values.keys() else DataRecipe
    return kind.from_dict(values, origin=", ".join(str(file) for file in files))


def find_recipe(name: str) -> Path:
    """A recipe file by path, or one that comes with the package by name (`nano` or `nano.toml`).

    Raises:
        ConfigError: There is no such file.
    """
    path = Path(name)
    if path.is_file():
        return path
    packaged = RECIPES / f"{path.name.removesuffix('.toml')}.toml"  # the name may have dots: glm-4.6
    if path.parent == Path() and packaged.is_file():
        return packaged
    known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
    raise ConfigError(f"no recipe {name!r}: give a TOML file or one of the packaged recipes ({known})")
