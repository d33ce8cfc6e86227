"""The plan of a recipe on a number of GPUs: what fits, how long each stage takes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from glmcore.errors import ConfigError
from glmcore.model.config import Checkpointing, GlmConfig
from glmcore.model.counts import count_parameters
from glmcore.model.flops import training_flops
from glmcore.model.parallel.config import ParallelConfig
from glmcore.plan.hardware import Assumptions, Gpu
from glmcore.plan.layouts import describe, layouts, misfit
from glmcore.plan.memory import Memory, peak_memory
from glmcore.plan.step_time import Load, StepModel, StepTime
from glmcore.train.config import TrainConfig
from glmcore.train.schedule import TrainPlan

DAY = 86_400
ROWS_PER_MICRO_BATCH = (8, 4, 2, 1)
"""Rows that are tried, the most first: larger products cost no more than smaller ones."""


@dataclass(frozen=True)
class StageLoad:
    """What a plan needs of a training stage."""

    name: str
    sequence_length: int
    num_tokens: int
    """Tokens of the whole stage."""
    tokens_per_step: int
    """Of its last step, when the batch has grown; the smaller steps of a ramp are taken at the same rate."""
    num_steps: int

    @property
    def rows_per_step(self) -> int:
        """Rows of a full step."""
        return max(self.tokens_per_step // self.sequence_length, 1)


@dataclass(frozen=True)
class Candidate:
    """A layout with the micro-batch that it takes, and what it costs."""

    layout: ParallelConfig
    load: Load
    memory: Memory
    time: StepTime
    flops_per_step: float
    """Operations that the model needs, without recomputation."""
    num_gpus: int
    peak_flops: float

    @property
    def mfu(self) -> float:
        """Share of the GPUs' dense bfloat16 peak that the model's own operations reach."""
        return self.flops_per_step / (self.time.total * self.num_gpus * self.peak_flops)

    def to_json(self) -> dict[str, object]:
        """Figures in bytes and seconds."""
        return {
            "layout": describe(self.layout),
            "rows_per_micro_batch": self.load.rows_per_micro_batch,
            "micro_batches": self.load.num_micro_batches,
            "checkpointing": self.load.checkpointing,
            "memory_bytes": vars(self.memory) | {"total": self.memory.total},
            "step_seconds": vars(self.time) | {"total": self.time.total},
            "mfu": self.mfu,
        }


@dataclass(frozen=True)
class StagePlan:
    """A stage on its best layouts."""

    stage: StageLoad
    flops_per_token: float
    candidates: tuple[Candidate, ...]
    """The fastest first; empty where nothing fits."""
    least_memory: float | None = None
    """Bytes that the most frugal layout needs, where none fits; None where none divides the step."""

    @property
    def seconds(self) -> float:
        """Of the whole stage on its best layout; infinite where nothing fits."""
        if not self.candidates:
            return float("inf")
        return self.candidates[0].time.total * self.stage.num_tokens / self.stage.tokens_per_step


def stage_loads(config: TrainConfig, name: str | None = None) -> list[StageLoad]:
    """The stages of a recipe, or the one of that name.

    Raises:
        ConfigError: There is no such stage.
    """
    plan = TrainPlan(config)
    loads = [
        StageLoad(stage.name, stage.sequence_length, steps.num_tokens, steps.sizes[1], steps.num_steps)
        for stage, steps in zip(config.stages, plan.stages, strict=True)
        if name in (None, stage.name)
    ]
    if not loads:
        raise ConfigError(f"no stage {name!r}: there are {', '.join(stage.name for stage in config.stages)}")
    return loads


class Planner:
    """Plans the stages of a model on `num_gpus` GPUs of one kind.

    Args:
        model: The model.
        gpu: The GPUs.
        num_gpus: How many.
        assumptions: Shares of their rates that are reached.
    """

    def __init__(self, model: GlmConfig, gpu: Gpu, num_gpus: int, assumptions: Assumptions) -> None:
        self.model, self.gpu, self.num_gpus, self.assumptions = model, gpu, num_gpus, assumptions
        self.counts = count_parameters(model)

    def plan(self, stage: StageLoad, layout: ParallelConfig | None, keep: int) -> StagePlan:
        """The `keep` fastest candidates of a stage that fit, on one layout or on all.

        Raises:
            ConfigError: `layout` does not have `num_gpus` ranks, or does not divide the model or the step.
        """
        if layout is None:
            tried: Iterable[ParallelConfig] = layouts(
                self.model, self.num_gpus, stage.sequence_length, stage.rows_per_step
            )
        else:
            self._check(layout, stage)
            tried = [layout]
        found: list[Candidate] = []
        least: float | None = None
        for each in tried:
            best = min(self._candidates(stage, each), key=lambda candidate: candidate.time.total, default=None)
            if best is not None:
                found.append(best)
            elif not found:
                needed = self._memory(each, self._load(stage, each, rows=1, checkpointing="full")).total
                least = needed if least is None else min(least, needed)
        found.sort(key=lambda candidate: candidate.time.total)
        return StagePlan(stage, self._flops_per_token(stage), tuple(found[:keep]), least)

    def _check(self, layout: ParallelConfig, stage: StageLoad) -> None:
        if layout.num_ranks != self.num_gpus:
            raise ConfigError(f"the layout {describe(layout)} has {layout.num_ranks} ranks, --gpus is {self.num_gpus}")
        reason = misfit(self.model, layout, stage.sequence_length, stage.rows_per_step)
        if reason is not None:
            raise ConfigError(f"stage {stage.name!r}: {reason}")

    def _candidates(self, stage: StageLoad, layout: ParallelConfig) -> list[Candidate]:
        """Every way to keep activations, each with the most rows at once that fit."""
        model = StepModel(self.model, layout, self.gpu, self.assumptions)
        found = []
        for checkpointing in get_args(Checkpointing):
            for rows in ROWS_PER_MICRO_BATCH:
                if stage.rows_per_step % (layout.data * rows) and rows > 1:
                    continue
                load = self._load(stage, layout, rows=rows, checkpointing=checkpointing)
                memory = self._memory(layout, load)
                if memory.total <= self.gpu.memory_bytes:
                    flops = self._flops_per_token(stage) * stage.rows_per_step * stage.sequence_length
                    found.append(
                        Candidate(layout, load, memory, model.time(load), flops, self.num_gpus, self.gpu.bf16_flops)
                    )
                    break
        return found

    def _memory(self, layout: ParallelConfig, load: Load) -> Memory:
        return peak_memory(self.model, self.counts, layout, load, self.assumptions)

    def _load(self, stage: StageLoad, layout: ParallelConfig, *, rows: int, checkpointing: Checkpointing) -> Load:
        return Load(
            sequence_length=stage.sequence_length,
            rows_per_micro_batch=rows,
            num_micro_batches=-(-stage.rows_per_step // (layout.data * rows)),
            checkpointing=checkpointing,
        )

    def _flops_per_token(self, stage: StageLoad) -> float:
        return training_flops(self.model)(stage.sequence_length) / stage.sequence_length


def days(plans: Sequence[StagePlan]) -> float:
    """Days of all stages, one after the other."""
    return sum(plan.seconds for plan in plans) / DAY
