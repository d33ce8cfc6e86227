"""The section of a recipe that describes reinforcement learning."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config
from glmcore.engine.config import EngineConfig
from glmcore.envs.config import EnvironmentConfig, ReasoningGymConfig
from glmcore.rl.async_config import AsyncConfig, RayConfig
from glmcore.rl.curriculum.config import (
    CurriculumConfig,
    DynamicSamplingConfig,
    LengthStageConfig,
    PoolConfig,
    ProbeConfig,
    TemperatureConfig,
)
from glmcore.rl.distill_config import DistillConfig
from glmcore.rl.evaluation_config import EvaluationConfig
from glmcore.rl.trajectory_log_config import TrajectoryLogConfig
from glmcore.train.config import OptimizerConfig


class ImportanceConfig(Config):
    """How the loss corrects for tokens that another policy drew: the quantised copy, or an earlier version."""

    kind: Literal["truncated", "masked", "none"] = "truncated"
    """`truncated` clamps the weight to the bounds, `masked` leaves out tokens beyond them, `none` takes 1."""
    low: NonNegativeFloat = 0.0
    cap: PositiveFloat = 2.0

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        if self.low >= self.cap:
            raise ValueError(f"low={self.low} must be below cap={self.cap}")
        return self


class OverlongConfig(Config):
    """What happens to answers that reach, or come near, the limit of their length."""

    filter: bool = False
    """Answers that were cut off carry no loss."""
    penalty_tokens: PositiveInt | None = None
    """Tokens before the limit over which the reward falls by up to 1; None for no penalty."""


class LossConfig(Config):
    """The policy-gradient loss; formulas and sources are in `glmcore.rl.loss` and its neighbours.

    Defaults are ours except where the GLM-4.5 report (arXiv:2508.06471), section 3.2, gives them: GRPO without a KL
    term, and the token-wise mean.
    """

    advantage: Literal["grpo", "centred", "rloo"] = "grpo"
    credit: Literal["episode", "turn"] = "episode"
    """`episode` gives all tokens the advantage of the whole episode, `turn` those of each turn that of what was earned
    from it on; see `glmcore.rl.credit`."""
    turn_discount: float = Field(default=1.0, gt=0, le=1)
    """Of a reward for each turn that it comes later, with `credit = "turn"`."""
    objective: Literal["ppo", "gspo", "cispo"] = "ppo"
    clip_low: float = Field(default=0.2, gt=0, le=1)
    """The probability ratio is clipped below at `1 - clip_low`; 1 leaves it open."""
    clip_high: PositiveFloat = 0.28
    """The probability ratio is clipped above at `1 + clip_high`."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Most that a token of negative advantage counts, in advantages; None for no bound. Not for `cispo`."""
    aggregation: Literal["token_mean", "sequence_mean", "fixed_length"] = "token_mean"
    importance: ImportanceConfig = ImportanceConfig()
    kl: Literal["none", "k1", "k2", "k3"] = "none"
    """Estimator of the KL divergence from the policy that the stage began with."""
    kl_weight: NonNegativeFloat = 0.0
    overlong: OverlongConfig = OverlongConfig()
    drop_uniform_groups: bool = False
    """Groups of equal rewards do not count in the means, which they add nothing to."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if (self.kl == "none") != (self.kl_weight == 0):
            raise ValueError(f"kl={self.kl!r} and kl_weight={self.kl_weight} go together: both, or neither")
        if self.turn_discount != 1.0 and self.credit == "episode":
            raise ValueError(f"turn_discount={self.turn_discount} needs credit = 'turn'")
        if self.objective == "cispo" and self.dual_clip is not None:
            raise ValueError("dual_clip is for the objectives that take a minimum, not for 'cispo'")
        return self


class RLConfig(Config):
    """Group-relative policy optimisation without a KL term, on problems whose answers a program verifies.

    The GLM-4.5 report (arXiv:2508.06471), section 3.2, gives the method; group size, clipping, rates and batch are
    not published.
    """

    environment: EnvironmentConfig = ReasoningGymConfig()
    tasks: list[str] = Field(default_factory=list[str])
    """Parts of the environment to draw tasks from: generators of `reasoning_gym`, categories of `bfcl`, ..."""
    max_steps: PositiveInt
    groups_per_step: PositiveInt = 16
    """Problems of one update."""
    rollouts_per_group: int = Field(default=8, ge=2)
    max_response_tokens: PositiveInt = 96
    temperature: PositiveFloat = 1.0
    updates_per_step: PositiveInt = 1
    """Optimiser steps on the rollouts of one step, each on its share of the groups."""
    loss: LossConfig = LossConfig()
    share_prefixes: bool = False
    """Run what rollouts of a micro-batch have in common, such as their prompt, once for all of them. Losses and
    gradients are the same to rounding; it pays where prompts are long beside the answers."""
    routing_replay: bool = False
    """Send every token to the experts that the engine chose when it sampled, so that trainer and engine take the same
    way through the model. Rollout routing replay (arXiv:2510.11370). Not `replay`, which repeats a run."""
    optimizer: OptimizerConfig
    learning_rate: PositiveFloat
    """Reached after `warmup_steps` in a straight line, and kept."""
    warmup_steps: PositiveInt = 1
    evaluation_problems: PositiveInt = 512
    """Held-out problems, each sampled once at `temperature`, before and after."""
    checkpoint_every_steps: PositiveInt = 5
    mode: Literal["sync", "async"] = "sync"
    """`sync` trains on rollouts of the newest weights alone, sampling and training in turn. `async` does both at the
    same time, for tasks whose environments are slow."""
    asynchronous: AsyncConfig = AsyncConfig()
    backend: Literal["local", "ray"] = "local"
    """`local` is one process. `ray` has the trainer's ranks and the buffer in actors of a Ray cluster, and in `async`
    engines and environments too."""
    ray: RayConfig = RayConfig()
    replay: str | None = None
    """Directory of an asynchronous run whose rollouts are trained on again, in its order, to the same weights."""
    rollout_precision: Literal["fp8", "bf16"] = "fp8"
    """Of the weights that engines sample with: block FP8, as for GLM-4.5 (arXiv:2508.06471, section 3.5), or bfloat16,
    for comparison."""
    sync_timeout_s: PositiveFloat = 600.0
    """Most that the new weights may take to reach the engines."""

    pool: PoolConfig | None = None
    """A fixed set of tasks; None for new tasks at every step."""
    curriculum: CurriculumConfig | None = None
    """Which tasks of the pool come when; None for all in turn."""
    dynamic_sampling: DynamicSamplingConfig | None = None
    """Whether groups of equal rewards are replaced by further ones."""
    dynamic_temperature: TemperatureConfig | None = None
    """How the temperature follows the reward; None to keep it."""
    length_stages: list[LengthStageConfig] = Field(default_factory=list[LengthStageConfig])
    """Shorter limits of the first steps, for comparison: GLM-4.5 trains with the longest answers from the start."""
    probe: ProbeConfig = ProbeConfig()
    evaluation: EvaluationConfig | None = None
    distill: DistillConfig = DistillConfig()
    trajectory_log: TrajectoryLogConfig = TrajectoryLogConfig()
    """Trajectories kept for `glmcore rl view`."""

    @property
    def engine(self) -> EngineConfig:
        """What engines that sample rollouts are set to."""
        return EngineConfig(record_experts=self.routing_replay)

    @property
    def max_staleness(self) -> int:
        """Most optimiser steps between sampling a token and training on it; those on one batch count."""
        return self.asynchronous.max_staleness if self.mode == "async" else self.updates_per_step - 1

    @property
    def samples_in_turn(self) -> bool:
        """Whether the trainer samples itself, in turn.

        `sync` does, and `async` where no token may be stale and dynamic sampling decides, when all groups have ended,
        how many more to sample: nothing could go on beside it.
        """
        least = self.max_staleness < self.updates_per_step and self.backend == "local"
        return self.mode == "sync" or (least and self.dynamic_sampling is not None)

    @model_validator(mode="after")
    def _environment_has_the_tasks(self) -> Self:
        self.environment.check_tasks(self.tasks)
        return self

    @model_validator(mode="after")
    def _mode_fits(self) -> Self:
        if self.max_staleness < self.updates_per_step - 1:
            raise ValueError(
                f"asynchronous.max_staleness={self.max_staleness} is less than what "
                f"updates_per_step={self.updates_per_step} makes of fresh rollouts: {self.updates_per_step - 1}"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.groups_per_step % self.updates_per_step:
            raise ValueError(
                f"updates_per_step={self.updates_per_step} must divide groups_per_step={self.groups_per_step}"
            )
        tolerated = self.loss.overlong.penalty_tokens
        if tolerated is not None and tolerated > self.max_response_tokens:
            raise ValueError(
                f"loss.overlong.penalty_tokens={tolerated} exceeds max_response_tokens={self.max_response_tokens}"
            )
        return self

    @model_validator(mode="after")
    def _curriculum_fits(self) -> Self:
        if self.curriculum is not None and self.pool is None:
            raise ValueError("a curriculum chooses from a fixed set of tasks: set pool.num_tasks")
        steps = [stage.last_step for stage in self.length_stages]
        lengths = [stage.max_tokens for stage in self.length_stages] + [self.max_response_tokens]
        if sorted(set(steps)) != steps or sorted(lengths) != lengths:
            raise ValueError("length_stages must rise in last_step and in max_tokens, up to max_response_tokens")
        return self
