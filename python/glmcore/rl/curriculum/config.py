"""The sections of a recipe about which tasks are trained on when, how warm, and how long answers may be."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config


class PlateauConfig(Config):
    """When the reward counts as stable: over `window` steps it rose by less than `min_rise` above the window before."""

    window: PositiveInt = 10
    min_rise: NonNegativeFloat = 0.01


class DifficultyConfig(Config):
    """How pass rates become difficulties.

    A hard problem has pass@8 = 0 and pass@512 > 0 (GLM-4.5, arXiv:2508.06471, section 3.2). Where moderate ends is not
    published; the bound is ours.
    """

    few_attempts: PositiveInt = 8
    """A problem that passes among so many first attempts is not hard."""
    many_attempts: PositiveInt = 512
    """A problem that fails so many attempts is out of reach."""
    easy_rate: float = Field(default=0.9, gt=0, le=1)
    """A problem with a higher pass rate is easy, and left out while it is."""
    half_life: PositiveFloat = 32.0
    """Attempts after which an observation counts half in the present pass rate: the policy changes."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.few_attempts >= self.many_attempts:
            raise ValueError(f"few_attempts={self.few_attempts} must be below many_attempts={self.many_attempts}")
        return self


class CurriculumStageConfig(Config):
    """A stretch of training on tasks of one difficulty."""

    difficulty: Literal["any", "moderate", "hard"]
    """`moderate` takes tasks that pass sometimes, and those that nobody has tried yet; `hard` those whose first few
    attempts all failed and a later one passed; `any` takes all."""
    verified_only: bool = False
    """Only tasks whose reference answers are verified."""
    until: Literal["plateau", "step", "end"] = "end"
    """What ends it: the reward is stable, `last_step` is done, or nothing."""
    last_step: PositiveInt | None = None
    """For `until="step"` the step after which it ends; for `plateau` the step after which it ends in any case."""

    @model_validator(mode="after")
    def _end_is_given(self) -> Self:
        if self.until == "step" and self.last_step is None:
            raise ValueError('until="step" needs last_step')
        if self.until == "end" and self.last_step is not None:
            raise ValueError('last_step needs until="step" or "plateau"')
        return self


class CurriculumConfig(Config):
    """Tasks chosen by their difficulty for the policy as it is."""

    stages: list[CurriculumStageConfig] = Field(min_length=1)
    difficulty: DifficultyConfig = DifficultyConfig()
    plateau: PlateauConfig = PlateauConfig()
    probe: str | None = None
    """Result of `glmcore rl probe`; None for that of the run, if it was probed."""

    @model_validator(mode="after")
    def _only_the_last_stage_is_open(self) -> Self:
        for place, stage in enumerate(self.stages):
            last = place == len(self.stages) - 1
            if last != (stage.until == "end"):
                raise ValueError(f'stage {place}: the last stage has until="end", and no other')
        return self


class PoolConfig(Config):
    """A fixed set of training tasks, which are tried again and again."""

    num_tasks: PositiveInt
    """Distinct tasks at most; a family with fewer gives what it has."""
    seed: int = Field(default=0, ge=0)
    """Of the set, apart from the run's, so that runs of several seeds share it."""
    wrong_answer_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of tasks that get the reference answer of another one, to study data of mixed quality. Such tasks do not
    count as verified."""


class DynamicSamplingConfig(Config):
    """Groups of equal rewards teach nothing and are replaced: DAPO (arXiv:2503.14476), section 3.2."""

    max_factor: float = Field(default=4.0, ge=1)
    """Most groups that are sampled for a step, as a multiple of `groups_per_step`; what is then missing is filled with
    groups of equal rewards."""
    smoothing: float = Field(default=0.8, ge=0, lt=1)
    """Weight of earlier steps in the share of groups with a signal, from which over-sampling is planned."""


class TemperatureConfig(Config):
    """The largest temperature that costs little reward, chosen when the reward is stable.

    Source: GLM-4.5 (arXiv:2508.06471), section 3.2, dynamic sampling temperature; the candidates are ours.
    """

    candidates: list[PositiveFloat] = Field(min_length=2)
    max_loss: float = Field(default=0.01, ge=0, lt=1)
    """Most of the best candidate's reward that the chosen one may lose on held-out tasks, as a share."""
    num_tasks: PositiveInt = 256
    """Held-out tasks that each candidate is tried on, with the same random numbers."""
    plateau: PlateauConfig = PlateauConfig()

    @model_validator(mode="after")
    def _candidates_rise(self) -> Self:
        if sorted(set(self.candidates)) != self.candidates:
            raise ValueError(f"candidates must rise, got {self.candidates}")
        return self


class LengthStageConfig(Config):
    """A stretch of training with shorter answers."""

    last_step: PositiveInt
    max_tokens: PositiveInt


class ProbeConfig(Config):
    """The offline pass over the tasks that finds their difficulty."""

    temperature: PositiveFloat | None = None
    """None for that of training."""
    seed: int = Field(default=0, ge=0)
