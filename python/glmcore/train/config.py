"""Sections of a recipe that describe training."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config


class OptimizerConfig(Config):
    """How gradients become updates. Defaults are those of the GLM-4.5 report, section 2.4, where it gives one."""

    matrices: Literal["muon", "adamw"] = "muon"
    """Rule for matrices; embeddings, the output head, biases and norms always use AdamW."""
    learning_rate: PositiveFloat = 2.5e-4
    """Peak rate of the schedule that spans all stages up to the end of mid-training."""
    final_learning_rate: PositiveFloat = 2.5e-5
    warmup_steps: PositiveInt = 100
    """Steps of linear warm-up. Not published for GLM-4.5."""
    weight_decay: NonNegativeFloat = 0.1
    momentum: NonNegativeFloat = Field(default=0.95, lt=1)
    """Muon's momentum."""
    adam_betas: tuple[float, float] = Field(default=(0.9, 0.95), strict=False)
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm. Not published for GLM-4.5."""


class BalanceConfig(Config):
    """How the load of the experts is kept even, and the weight of the MTP loss."""

    bias_update_rate: NonNegativeFloat = 1e-3
    sequence_loss_weight: NonNegativeFloat = 1e-4
    mtp_loss_weight: NonNegativeFloat = 0.3


class StageConfig(Config):
    """One training stage."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    kind: Literal["pretrain", "midtrain", "sft"] = "pretrain"
    """`pretrain` and `midtrain` stages share one cosine schedule; an `sft` stage has its own."""
    mixture: dict[str, PositiveFloat]
    """Weight of each data source, in tokens."""
    sequence_length: PositiveInt
    """Tokens of a packed row."""
    packing: Literal["concat", "stream", "best_fit", "blocks"] = "best_fit"
    """GLM-4.5 concatenates and cuts in pre-training and packs best-fit in mid-training (report, section 2.3). `concat`
    and `best_fit` plan the rows of the stage in memory. For stages of any length `stream` concatenates and cuts without
    a plan, and `blocks` packs best-fit by blocks of rows."""
    too_long: Literal["split", "truncate", "drop"] = "split"
    """What best fit does with documents longer than a row."""
    rope_theta: PositiveFloat = 10_000.0
    num_steps: PositiveInt
    rows_per_step: PositiveInt
    rows_per_micro_batch: PositiveInt | None = None
    """Rows in memory at once; gradients of the micro-batches of a step are summed."""
    learning_rate: PositiveFloat | None = None
    """Peak rate of an `sft` stage; other stages follow the shared schedule."""
    final_learning_rate: PositiveFloat | None = None
    """Last rate of an `sft` stage."""
    balance: BalanceConfig = BalanceConfig()

    @model_validator(mode="after")
    def _only_best_fit_loses_documents(self) -> Self:
        if self.packing in ("concat", "stream") and self.too_long != "split":
            raise ValueError(f"too_long={self.too_long!r} is for best fit; packing={self.packing!r} cuts at row ends")
        return self

    @model_validator(mode="after")
    def _rates_belong_to_sft(self) -> Self:
        given = (self.learning_rate is not None, self.final_learning_rate is not None)
        if self.kind == "sft" and not all(given):
            raise ValueError("an sft stage needs learning_rate and final_learning_rate")
        if self.kind != "sft" and any(given):
            raise ValueError("only an sft stage has its own learning rate; others follow [optimizer]")
        return self

    @property
    def num_rows(self) -> int:
        """Packed rows that the stage consumes."""
        return self.num_steps * self.rows_per_step


class CheckpointConfig(Config):
    """When progress is saved."""

    every_steps: PositiveInt = 50
    keep: PositiveInt = 2
    """Newest checkpoints that stay on disk."""


class TrainConfig(Config):
    """All training stages, in order."""

    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stages: list[StageConfig] = Field(min_length=1)
    log_load_every_steps: NonNegativeInt = 10
    """Steps between records of the load of every expert; 0 for none."""

    @model_validator(mode="after")
    def _stages_are_ordered(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names) or "rl" in names:
            raise ValueError(f"stage names must be distinct and none may be 'rl', got {names}")
        order = ["pretrain", "midtrain", "sft"]
        ranks = [order.index(stage.kind) for stage in self.stages]
        if ranks != sorted(ranks):
            raise ValueError("stages must be in the order pretrain, midtrain, sft")
        if self.scheduled_steps and self.optimizer.warmup_steps >= self.scheduled_steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} must be below the "
                f"{self.scheduled_steps} steps of the pretrain and midtrain stages"
            )
        return self

    @property
    def scheduled_steps(self) -> int:
        """Steps of all stages that share the cosine schedule."""
        return sum(stage.num_steps for stage in self.stages if stage.kind != "sft")
