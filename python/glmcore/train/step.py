"""One optimiser step's gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from glmcore.model.glm import Glm
from glmcore.model.moe import RouterFigures, router_figures, update_correction_bias
from glmcore.model.parallel.pipeline import PipelinedGlm
from glmcore.model.parallel.ranks import Ranks
from glmcore.packing import PackedBatch
from glmcore.train.objective import Objective
from glmcore.train.schedule import LossWeights


@dataclass(frozen=True)
class StepResult:
    """Figures of one optimiser step, the same on all ranks."""

    loss: float
    """Mean next-token cross-entropy in nats over the tokens that carry a loss."""
    mtp_loss: float
    """The same for the token after the next one; NaN without an MTP layer."""
    routers: RouterFigures
    """How evenly the experts of each layer that ran were loaded."""


def train_step(model: Glm, batches: Sequence[PackedBatch], weights: LossWeights, ranks: Ranks) -> StepResult:
    """Add the gradients of one step's micro-batches and steer the routers; the optimiser is not called.

    Args:
        model: The model, or what this rank has of it in a pipeline.
        batches: This rank's micro-batches, each of at least one row; all ranks of a pipeline have the same.
        weights: Weights of the losses.
        ranks: Who else works on the step.
    """
    objective = Objective(model.config, batches, weights, ranks)
    if isinstance(model, PipelinedGlm):
        model.run(list(objective.micro_batches()))
    else:
        for micro_batch in objective.micro_batches():
            micro_batch.run(model).backward()
    loads = objective.loads()
    for number, router in zip(model.moe_layer_numbers, model.routers, strict=True):
        row = number - model.config.first_k_dense_replace
        if row < len(loads):  # a step may do without the MTP layer
            update_correction_bias(router, loads[row], weights.bias_update_rate)
    loss, mtp_loss = objective.losses()
    return StepResult(loss, mtp_loss, router_figures(loads))


@torch.no_grad()
def evaluate(model: Glm, batches: Sequence[PackedBatch], ranks: Ranks) -> float:
    """Mean next-token cross-entropy of some batches in nats, over the tokens of all ranks that carry a loss.

    Args:
        model: The model, or what this rank has of it in a pipeline.
        batches: This rank's batches, at least one; all ranks of a pipeline have the same.
        ranks: Who else works on them.
    """
    objective = Objective(model.config, batches, LossWeights(mtp_loss_weight=0.0), ranks)
    if isinstance(model, PipelinedGlm):
        model.evaluate(list(objective.micro_batches()))
    else:
        for micro_batch in objective.micro_batches():
            micro_batch.run(model)
    return objective.losses()[0]
