"""What one rank of a pipeline holds of a model, and how the micro-batches of a step go through all ranks.

Shapes: T tokens of a micro-batch, D hidden size.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleLoopedBFS,
)
from torch.distributed.tensor import DTensor

from glmcore.errors import ConfigError
from glmcore.model.glm import Glm
from glmcore.model.parallel.ranks import Ranks
from glmcore.model.parallel.split import split_layers
from glmcore.model.parallel.stage import GlmPart, GlmStage, MicroBatch, has_two_embeddings

EVALUATED_AT_ONCE = 4
"""Micro-batches of an evaluation under way at once, for each stage of the pipeline. Their activations stay until the
last of them is through, and meanwhile the time of one micro-batch a stage is lost."""


class PipelinedGlm(GlmPart):
    """The stages of a model that one rank holds, under the names of the whole model.

    Args:
        whole: The model, best on the meta device: no rank then ever holds all of it.
        ranks: Who holds the other stages.

    Raises:
        ConfigError: The layers cannot be split so.
    """

    def __init__(self, whole: Glm, ranks: Ranks) -> None:
        axis = ranks.axis("pipeline")
        parts = split_layers(whole.config, ranks.config)[axis.rank :: axis.size]
        super().__init__(whole, parts)
        self.parallel = ranks.config
        self.axis = axis
        self.stages: tuple[GlmStage, ...] = ()
        """Made by `cut`. Their modules are registered in this one; a tuple does not do so again."""
        self._parts = parts
        self._activation_dtype = torch.float32
        self._schedules: dict[tuple[int, int, bool], tuple[list[PipelineStage], Any]] = {}

    def cut(self, activation_dtype: torch.dtype | None = None) -> tuple[GlmStage, ...]:
        """The stages, made of the modules as they are now, first to last.

        Args:
            activation_dtype: Type of what stages pass on; by default the weights'.
        """
        self.stages = tuple(GlmStage(self, part) for part in self._parts)
        self._activation_dtype = activation_dtype or next(self.parameters()).dtype
        return self.stages

    def run(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Add the gradients of all micro-batches of a step; all ranks of the pipeline call it, with the same ones.

        Raises:
            ConfigError: The schedule does not take so many micro-batches, or they are of different sizes.
        """
        if not has_two_embeddings(self.config) or self.axis.rank not in (0, self.axis.size - 1):
            self._run(micro_batches, backward=True)
            return
        embedding = self.model.embed_tokens
        # What earlier runs have left is a sum of both ranks already.
        before, embedding.weight.grad = embedding.weight.grad, None
        self._run(micro_batches, backward=True)
        self._add_gradient_of_other(embedding.weight)
        if before is not None and embedding.weight.grad is not None:
            embedding.weight.grad += before

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Run the objectives of some micro-batches without gradients; all ranks of the pipeline call it."""
        at_once = EVALUATED_AT_ONCE * self.stages[0].part.num_stages
        for _, group in groupby(micro_batches, key=lambda micro_batch: micro_batch.num_tokens):
            of_one_size = list(group)
            for start in range(0, len(of_one_size), at_once):
                self._run(of_one_size[start : start + at_once], backward=False)
        for stage in self.stages:
            if isinstance(stage, FSDPModule):
                stage.reshard()  # without a backward pass, nothing else drops the whole embedding and head

    def _run(self, micro_batches: Sequence[MicroBatch], *, backward: bool) -> None:
        sizes = sorted({micro_batch.num_tokens for micro_batch in micro_batches})
        if len(sizes) != 1:
            raise ConfigError(
                f"the micro-batches of a pipeline are of one size, these have {sizes} tokens: rows_per_micro_batch "
                "must divide the rows of every rank"
            )
        if backward:
            self.parallel.check_micro_batches(len(micro_batches))
        key = (len(micro_batches), sizes[0], backward)
        if key not in self._schedules:
            self._schedules[key] = self._new_schedule(*key)
        parts, schedule = self._schedules[key]
        for stage in self.stages:
            stage.follow(self)
        schedule.step(
            kwarg_mbs=[{"micro_batch": micro_batch} for micro_batch in micro_batches],
            target_mbs=[None] * len(micro_batches),  # objectives have the labels
            return_outputs=False,
        )
        for part in parts:
            part.clear_runtime_states()  # a schedule keeps its last activations until it is used again

    def _new_schedule(self, num_micro_batches: int, num_tokens: int, backward: bool) -> tuple[list[PipelineStage], Any]:
        weight, dtype = next(self.parameters()), self._activation_dtype
        hidden = torch.empty(num_tokens, self.config.hidden_size, dtype=dtype, device="meta", requires_grad=True)
        loss = torch.empty(
            (), dtype=torch.promote_types(weight.dtype, torch.float32), device="meta", requires_grad=True
        )
        stages = [
            PipelineStage(
                stage,
                stage.part.index,
                stage.part.num_stages,
                weight.device,
                input_args=() if stage.part.is_first else (hidden,),
                output_args=(loss,) if stage.part.is_last else (hidden,),
                group=self.axis.group,
            )
            for stage in self.stages
        ]
        if not backward:
            if len(stages) == 1:
                return stages, ScheduleGPipe(stages[0], num_micro_batches)
            return stages, ScheduleLoopedBFS([*stages], num_micro_batches)
        if self.parallel.pipeline_schedule == "interleaved":
            return stages, ScheduleInterleaved1F1B([*stages], num_micro_batches, _given_loss, scale_grads=False)
        kind = Schedule1F1B if self.parallel.pipeline_schedule == "1f1b" else ScheduleGPipe
        return stages, kind(stages[0], num_micro_batches, _given_loss, scale_grads=False)

    @torch.no_grad()
    def _add_gradient_of_other(self, weight: Tensor) -> None:
        """Give the embeddings of the first and the last rank the sum of their gradients, so that they stay equal."""
        if weight.grad is None:  # the last rank's, in a step without multi-token prediction
            weight.grad = torch.zeros_like(weight)
        own = weight.grad.to_local() if isinstance(weight.grad, DTensor) else weight.grad
        other = torch.empty_like(own)
        peer = self.axis.size - 1 - self.axis.rank
        exchange = [
            dist.P2POp(dist.isend, own, group=self.axis.group, group_peer=peer),
            dist.P2POp(dist.irecv, other, group=self.axis.group, group_peer=peer),
        ]
        for work in dist.batch_isend_irecv(exchange):
            work.wait()
        own += other


def _given_loss(loss: Tensor, target: None) -> Tensor:
    """The last stage gives the loss itself."""
    return loss
