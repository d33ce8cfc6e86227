"""Sections of a recipe that describe training. docs/train.md says which values are published.

All lengths are in tokens, and what changes during a run changes with the number of tokens seen.
"""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from glmcore.config import Config
from glmcore.model.config import Checkpointing


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Tokens = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
"""A number of tokens; `15e12` is as good as `15_000_000_000_000`."""
SomeTokens = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
"""The same, at least 1."""


class OptimizerConfig(Config):
    """How gradients become updates. Defaults are those of the GLM-4.5 report, section 2.4, where it gives one."""

    matrices: Literal["muon", "adamw"] = "muon"
    """Rule for matrices; embeddings, the output head, biases and norms always use AdamW."""
    weight_decay: NonNegativeFloat = 0.1
    momentum: NonNegativeFloat = Field(default=0.95, lt=1)
    """Muon's momentum."""
    newton_schulz: Literal["float32", "bfloat16"] = "float32"
    """Type in which Muon orthogonalises. `bfloat16` is what GPUs are fast in and what the published implementations
    use; it also halves what ranks send each other. `float32` gives every layout the same bits on a CPU."""
    adam_betas: tuple[float, float] = Field(default=(0.9, 0.95), strict=False)
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm. Not published for GLM-4.5."""


class ScheduleConfig(Config):
    """Learning rate by the tokens seen: linear warm-up from 0, then down to the end of what the schedule spans."""

    shape: Literal["cosine", "wsd"] = "cosine"
    """`cosine` falls by half a cosine all the way. `wsd` (warm-up, stable, decay) stays at the peak and falls in a
    straight line over the last `decay_tokens`. GLM-4.5 chose the cosine over WSD (report, section 2.4)."""
    learning_rate: PositiveFloat
    """Peak rate, reached after the warm-up."""
    final_learning_rate: PositiveFloat
    """Rate of the last step."""
    warmup_tokens: Tokens = 0
    """Not published for GLM-4.5."""
    decay_tokens: SomeTokens | None = None
    """Length of the decay of `wsd`."""

    @model_validator(mode="after")
    def _decays_as_its_shape_does(self) -> Self:
        if (self.shape == "wsd") != (self.decay_tokens is not None):
            raise ValueError("decay_tokens and shape = 'wsd' go together")
        return self


class BatchConfig(Config):
    """Tokens of an optimiser step."""

    num_tokens: SomeTokens
    """Once the ramp is over."""
    initial_tokens: SomeTokens | None = None
    """At the beginning of the ramp; None for no ramp."""
    ramp_tokens: Tokens = 0
    """Training tokens over which a step grows in a straight line from `initial_tokens` to `num_tokens`."""
    rows_multiple: PositiveInt = 1
    """A step has the largest multiple of so many rows that is not above its tokens, but at least one such multiple.
    Numbers of data ranks that divide it can take the run over from each other."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if (self.initial_tokens is None) != (self.ramp_tokens == 0):
            raise ValueError("initial_tokens and ramp_tokens go together")
        if self.initial_tokens is not None and self.initial_tokens > self.num_tokens:
            raise ValueError(f"initial_tokens={self.initial_tokens} must not be above num_tokens={self.num_tokens}")
        return self


class ChangeConfig(Config):
    """A value from some number of tokens on."""

    from_tokens: Tokens
    value: NonNegativeFloat


ByTokens = NonNegativeFloat | list[ChangeConfig]
"""A value for the whole run, or the values that it takes one after the other."""


class BalanceConfig(Config):
    """How the load of the experts is kept even, and the weight of the MTP loss, by the tokens seen.

    GLM-4.5: updates of 1e-3 for the first 15T tokens, then 0; a sequence loss of weight 1e-4; an MTP loss of weight 0.3
    for the first 15T tokens, then 0.1 (report, section 2.4).
    """

    bias_update_rate: ByTokens = 1e-3
    """Size of the step of a router's correction bias."""
    sequence_loss_weight: ByTokens = 1e-4
    mtp_loss_weight: ByTokens = 0.3

    @field_validator("*")
    @classmethod
    def _changes_are_in_order(cls, value: ByTokens) -> ByTokens:
        if isinstance(value, list):
            starts = [change.from_tokens for change in value]
            if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
                raise ValueError(f"from_tokens must begin with 0 and rise, got {starts}")
        return value


class StageConfig(Config):
    """One training stage."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    kind: Literal["pretrain", "midtrain", "sft"] = "pretrain"
    """`pretrain` and `midtrain` stages share the schedule of `train`; an `sft` stage has its own and a fresh
    optimiser."""
    mixture: dict[str, PositiveFloat]
    """Weight of each data source, in tokens."""
    num_tokens: SomeTokens
    """Length of the stage, padding included; the step that reaches it is the last."""
    sequence_length: PositiveInt
    """Tokens of a packed row."""
    packing: Literal["concat", "stream", "best_fit", "blocks"] = "best_fit"
    """GLM-4.5 concatenates and cuts in pre-training and packs best-fit in mid-training (report, section 2.3). `concat`
    and `best_fit` plan the rows of the stage in memory. For stages of any length `stream` concatenates and cuts without
    a plan, and `blocks` packs best-fit by blocks of rows."""
    too_long: Literal["split", "truncate", "drop"] = "split"
    """What best fit does with documents longer than a row."""
    learned: Literal["assistant", "all"] = "assistant"
    """Which tokens of a conversation carry a loss: what the assistant says, or all. Texts are learned whole."""
    rope_theta: PositiveFloat = 10_000.0
    batch_tokens: SomeTokens | None = None
    """Tokens of every step of this stage, in place of `train.batch`."""
    rows_per_micro_batch: PositiveInt | None = None
    """Rows in a rank's memory at once; gradients of the micro-batches of a step are summed. None for all of a step."""
    schedule: ScheduleConfig | None = None
    """Learning rate of an `sft` stage, by the tokens of this stage."""

    @model_validator(mode="after")
    def _only_best_fit_loses_documents(self) -> Self:
        if self.packing in ("concat", "stream") and self.too_long != "split":
            raise ValueError(f"too_long={self.too_long!r} is for best fit; packing={self.packing!r} cuts at row ends")
        return self

    @model_validator(mode="after")
    def _schedules_belong_to_sft(self) -> Self:
        if (self.kind == "sft") != (self.schedule is not None):
            raise ValueError("an sft stage needs a schedule of its own, other stages follow train.schedule")
        return self


class CheckpointConfig(Config):
    """When progress is saved."""

    every_steps: PositiveInt = 50
    keep_last: PositiveInt = 2
    """Newest checkpoints that stay on disk."""
    keep_every: PositiveInt | None = None
    """Of every stage, checkpoints after a multiple of so many steps stay for ever; none by default."""

    @model_validator(mode="after")
    def _what_is_kept_is_saved(self) -> Self:
        if self.keep_every is not None and self.keep_every % self.every_steps:
            raise ValueError(f"keep_every={self.keep_every} must be a multiple of every_steps={self.every_steps}")
        return self


class ValidationConfig(Config):
    """Loss on held-out documents (`held_out`), of each source of a stage's mixture apart."""

    every_steps: PositiveInt = 50
    """Steps between two; the last step of a stage is followed by one too."""
    max_rows: PositiveInt = 16
    """Rows of each source, at the stage's sequence length, the same every time; a source of fewer tokens gives less."""


class SpikeConfig(Config):
    """When a step is left out since its loss or gradient leaps: weights and optimiser stay, routers are still steered.

    A step is skipped when its loss or its gradient norm is above `mean + max_deviations * standard deviation` of those
    of the `window` steps of the stage before it, the skipped among them, so that a new level is taken for the usual one
    in the end. Before a stage has half a window of steps, none is skipped. Defaults and rule are those of OLMo-core's
    SkipStepOptimizer; GLM-4.5 is silent on it.
    """

    window: int = Field(default=128, ge=4)
    max_deviations: PositiveFloat = 6.0


class ComputeConfig(Config):
    """How forward and backward passes are computed."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and of the weights that meet them. Weights, their gradients summed over micro-batches and
    ranks, and the optimiser stay in float32, and so do the routers."""
    activation_checkpointing: Checkpointing = "none"
    """What blocks keep for the backward pass; the rest is computed again, with the same bits."""
    compile: bool = False
    """Compile blocks with `torch.compile`."""


class TrainConfig(Config):
    """All training stages, in order."""

    compute: ComputeConfig = ComputeConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig
    """Learning rate of the pretrain and midtrain stages together."""
    batch: BatchConfig
    balance: BalanceConfig = BalanceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig | None = None
    """None for no validation."""
    spikes: SpikeConfig | None = None
    """None to skip no step."""
    stages: list[StageConfig] = Field(min_length=1)
    log_load_every_steps: NonNegativeInt = 1
    """Steps between records of the load of every expert; 0 for none. Largest violation and dead experts are in every
    record."""
    tensorboard: bool = False
    """Also write the records as TensorBoard events, into `tensorboard` of the run directory."""

    @model_validator(mode="after")
    def _stages_are_ordered(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names) or "rl" in names:
            raise ValueError(f"stage names must be distinct and none may be 'rl', got {names}")
        order = ["pretrain", "midtrain", "sft"]
        ranks = [order.index(stage.kind) for stage in self.stages]
        if ranks != sorted(ranks):
            raise ValueError("stages must be in the order pretrain, midtrain, sft")
        return self

    @model_validator(mode="after")
    def _schedules_fit_what_they_span(self) -> Self:
        shared = sum(stage.num_tokens for stage in self.stages if stage.kind != "sft")
        spans = [("train.schedule", self.schedule, shared)] if shared else []
        spans += [(f"schedule of stage {s.name}", s.schedule, s.num_tokens) for s in self.stages if s.schedule]
        for name, schedule, span in spans:
            taken = schedule.warmup_tokens + (schedule.decay_tokens or 0)
            if taken > span or schedule.warmup_tokens == span:
                raise ValueError(f"{name}: {taken} tokens of warm-up and decay are too many for {span}")
        return self
