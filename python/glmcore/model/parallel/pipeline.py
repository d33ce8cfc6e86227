"""A model in the stages of a pipeline: what a rank holds of it, and how a step's micro-batches go through.

Shapes: T tokens of a micro-batch, D hidden size.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleLoopedBFS,
)
from torch.distributed.tensor import DTensor
from typing_extensions import Self

from glmcore.errors import ConfigError
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm, Output
from glmcore.model.layout import DocumentLayout
from glmcore.model.parallel.ranks import Ranks
from glmcore.model.parallel.split import StagePart, split_layers

EMBEDDING = "model.embed_tokens"
NORM = "model.norm"
HEAD = "lm_head"

EVALUATED_AT_ONCE = 4
"""Micro-batches of an evaluation that are under way at once, for each stage: their activations stay until the last one
is through, and the time of `num_stages - 1` of them is lost."""


@dataclass(frozen=True)
class MicroBatch:
    """What every stage needs of T tokens, beside the activations of the stage before."""

    input_ids: Tensor
    """int64 [T]."""
    position_ids: Tensor
    """int64 [T]."""
    layout: DocumentLayout
    with_mtp: bool
    objective: Callable[[Glm, Output], Tensor]
    """The part of the micro-batch's loss that a stage can tell: all of it but the balance of the other stages' routers
    on the last stage, the balance of its own on the others."""

    def loss(self, model: Glm) -> Tensor:
        """Run a whole model."""
        output = model(self.input_ids, self.position_ids, self.layout, with_mtp=self.with_mtp)
        return self.objective(model, output)


class _AttachLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.dtype = loss.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0].new_ones((), dtype=ctx.dtype)


def attach_loss(x: Tensor, loss: Tensor) -> Tensor:
    """`x` as it is; when a gradient comes back to it, `loss` is differentiated too, as if it had been added to the total.

    So a loss that is known in the middle of a model need not be carried to its end.

    Args:
        x: Any shape.
        loss: Scalar.
    """
    return _AttachLoss.apply(x, loss)  # pyright: ignore[reportReturnType]


def module_names(config: GlmConfig, parts: Iterable[StagePart]) -> set[str]:
    """The modules that stages hold; the last one a second embedding, where multi-token prediction or the head needs it."""
    names: set[str] = set()
    for part in parts:
        names |= {f"model.layers.{index}" for index in part.layers}
        if part.is_first:
            names.add(EMBEDDING)
        if part.is_last:
            names |= {NORM, HEAD}
            if config.num_nextn_predict_layers:
                names |= {EMBEDDING, f"model.layers.{config.num_hidden_layers}"}
            if config.tie_word_embeddings:
                names.add(EMBEDDING)
    return names


def _keep(model: Glm, names: set[str]) -> None:
    """Leave only the modules `names` in a model: other layers go, in place of other modules what they get passes."""
    for index, _ in list(model.model.layers.named_children()):
        if f"model.layers.{index}" not in names:
            delattr(model.model.layers, index)  # unlike `del layers[i]` this renumbers nothing
    for name in {EMBEDDING, NORM, HEAD} - names:
        model.set_submodule(name, nn.Identity())


class GlmStage(Glm):
    """One stage: some modules of a rank's model, shared with it, and run on one micro-batch."""

    def __init__(self, whole: Glm, part: StagePart) -> None:
        with torch.device("meta"):
            super().__init__(whole.config)
        self.part = part
        names = module_names(whole.config, [part])
        _keep(self, names)
        for name in names:
            self.set_submodule(name, whole.get_submodule(name))

    def forward(self, x: Tensor | None = None, *, micro_batch: MicroBatch) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Activations for the next stage, [T, D]; of the last stage the loss, a scalar.

        Args:
            x: Activations of the stage before, [T, D]; None for the first stage.
            micro_batch: The tokens and what they are worth.
        """
        output = super().forward(
            micro_batch.input_ids,
            micro_batch.position_ids,
            micro_batch.layout,
            with_mtp=micro_batch.with_mtp,
            inputs_embeds=x,
        )
        loss = micro_batch.objective(self, output)
        if self.part.is_last:
            return loss
        return attach_loss(output.hidden, loss) if loss.requires_grad else output.hidden


class PipelinedGlm(Glm):
    """What one rank of a pipeline holds of a model, under the names of the whole model.

    Args:
        config: The whole model.
        ranks: Who else holds parts.

    Raises:
        ConfigError: The layers cannot be split so.
    """

    def __init__(self, config: GlmConfig, ranks: Ranks) -> None:
        self_parts = split_layers(config, ranks.config)
        axis = ranks.axis("pipeline")
        with torch.device("meta"):
            super().__init__(config)
        self.parts = self_parts[axis.rank :: axis.size]
        self.axis = axis
        self.schedule_name = ranks.config.pipeline_schedule
        _keep(self, module_names(config, self.parts))
        self.to_empty(device="cpu")
        if config.tie_word_embeddings and self.is_last:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.stages = tuple(GlmStage(self, part) for part in self.parts)  # a tuple: their modules are registered here
        self._schedules: dict[tuple[int, int, bool], Any] = {}

    @property
    def is_last(self) -> bool:
        """True on the rank that knows the losses."""
        return self.parts[-1].is_last

    def run(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Add the gradients of all micro-batches to those of the parameters; a collective call of the pipeline.

        Raises:
            ConfigError: The schedule does not take so many micro-batches, or they are of different sizes.
        """
        self._run(micro_batches, backward=True)
        self._add_gradients_of_embeddings()

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Run the objectives of all micro-batches, without gradients; a collective call of the pipeline.

        Raises:
            ConfigError: The micro-batches are of different sizes.
        """
        at_once = EVALUATED_AT_ONCE * self.parts[0].num_stages
        for start in range(0, len(micro_batches), at_once):
            self._run(micro_batches[start : start + at_once], backward=False)

    def _run(self, micro_batches: Sequence[MicroBatch], *, backward: bool) -> None:
        sizes = {len(micro_batch.input_ids) for micro_batch in micro_batches}
        if len(sizes) != 1:
            raise ConfigError(
                f"the stages of a pipeline pass on micro-batches of one size, these have {sorted(sizes)} tokens: "
                "rows_per_micro_batch must divide the rows of a rank"
            )
        key = (len(micro_batches), sizes.pop(), backward)
        if key not in self._schedules:
            self._schedules[key] = self._schedule(*key)
        for stage in self.stages:
            stage.rope_theta = self.rope_theta
        self._schedules[key].step(
            kwarg_mbs=[{"micro_batch": micro_batch} for micro_batch in micro_batches],
            target_mbs=[None] * len(micro_batches),  # the objective has the labels
            return_outputs=False,
        )

    def _schedule(self, num_micro_batches: int, num_tokens: int, backward: bool) -> Any:
        dtype = next(self.parameters()).dtype
        hidden = torch.empty(num_tokens, self.config.hidden_size, dtype=dtype, device="meta", requires_grad=True)
        scalar = torch.empty((), dtype=torch.promote_types(dtype, torch.float32), device="meta", requires_grad=True)
        stages = [
            PipelineStage(
                stage,
                stage.part.index,
                stage.part.num_stages,
                next(self.parameters()).device,
                input_args=() if stage.part.is_first else (hidden,),
                output_args=scalar if stage.part.is_last else (hidden,),
                group=self.axis.group,
            )
            for stage in self.stages
        ]
        return new_schedule(self.schedule_name, stages, num_micro_batches, backward=backward)

    @torch.no_grad()
    def _add_gradients_of_embeddings(self) -> None:
        """Where the first and the last rank both have the embedding, give both the sum of their gradients."""
        config = self.config
        if not (config.num_nextn_predict_layers or config.tie_word_embeddings):
            return
        if self.axis.rank not in (0, self.axis.size - 1):
            return
        weight = self.model.embed_tokens.weight
        if weight.grad is None:  # the last stage's, when it does without its multi-token-prediction layer
            weight.grad = torch.zeros_like(weight)
        own = weight.grad.to_local() if isinstance(weight.grad, DTensor) else weight.grad
        other = torch.empty_like(own)
        peer = self.axis.size - 1 - self.axis.rank
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, own, group=self.axis.group, group_peer=peer),
                dist.P2POp(dist.irecv, other, group=self.axis.group, group_peer=peer),
            ]
        )
        for work in works:
            work.wait()
        own += other


def new_schedule(name: str, stages: list[PipelineStage], num_micro_batches: int, *, backward: bool) -> Any:
    """The order in which a rank's stages work on a step's micro-batches.

    Raises:
        ConfigError: It does not take so many.
    """
    num_stages, num_ranks = stages[0].num_stages, stages[0].group_size
    if not backward:
        if len(stages) > 1:
            return ScheduleLoopedBFS(list(stages), num_micro_batches)
        return ScheduleGPipe(stages[0], num_micro_batches)
    if name == "gpipe":
        return ScheduleGPipe(stages[0], num_micro_batches, _its_own, scale_grads=False)
    if num_micro_batches < num_stages and name == "1f1b":
        raise ConfigError(
            f"a step has {num_micro_batches} micro-batches, the schedule '1f1b' with {num_stages} stages needs as many: "
            "lower rows_per_micro_batch, or set parallel.pipeline_schedule='gpipe'"
        )
    if name == "1f1b":
        return Schedule1F1B(stages[0], num_micro_batches, _its_own, scale_grads=False)
    if num_micro_batches % num_ranks:
        raise ConfigError(
            f"a step has {num_micro_batches} micro-batches, the schedule 'interleaved' takes multiples of "
            f"pipeline={num_ranks}: change rows_per_step or rows_per_micro_batch"
        )
    return ScheduleInterleaved1F1B(list(stages), num_micro_batches, _its_own, scale_grads=False)


def _its_own(loss: Tensor, target: None) -> Tensor:
    """The last stage gives the loss itself."""
    return loss
