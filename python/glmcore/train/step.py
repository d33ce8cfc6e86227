"""One optimiser step's gradients."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glmcore.model.glm import Glm, Output
from glmcore.model.layout import DocumentLayout
from glmcore.model.moe import expert_load, sequence_balance_loss, update_correction_bias
from glmcore.model.parallel.ranks import Ranks
from glmcore.packing import PackedBatch
from glmcore.train.loss import IGNORED, linear_cross_entropy
from glmcore.train.schedule import LossWeights


@dataclass(frozen=True)
class StepResult:
    """Figures of one optimiser step."""

    loss: float
    """Mean next-token cross-entropy in nats over the tokens that carry a loss."""
    mtp_loss: float
    """The same for the token after the next one; NaN without an MTP layer."""
    load: Tensor
    """Share of the routed tokens of each expert, float32 [layers, E]; rows sum to 1."""


def train_step(model: Glm, batches: list[PackedBatch], weights: LossWeights, ranks: Ranks) -> StepResult:
    """Add the gradients of one step's micro-batches and steer the routers; the optimiser is not called.

    Losses are means over the tokens of the whole step, on all ranks, so cutting it into micro-batches changes only
    rounding.

    Args:
        model: The model.
        batches: This rank's micro-batches, each of at least one row.
        weights: Weights of the losses.
        ranks: Who else works on the step.
    """
    device = model.lm_head.weight.device
    num_labels, num_mtp_labels, num_tokens = ranks.sum_over_batch(_count_tokens(batches)).tolist()
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # of the losses of next tokens and of those after them
    loads: Tensor | None = None
    for batch in batches:
        output, lengths = run_batch(model, batch, with_mtp=weights.mtp_loss_weight > 0)
        head = model.lm_head.weight
        loss = linear_cross_entropy(output.hidden, head, _int64(batch.labels, device))
        total = loss / max(num_labels, 1)
        if output.mtp_hidden is not None:
            mtp_loss = linear_cross_entropy(output.mtp_hidden, head, _int64(_shifted_labels(batch), device))
            total = total + weights.mtp_loss_weight * mtp_loss / max(num_mtp_labels, 1)
            sums[1] += mtp_loss.detach()
        for routing in output.routings:
            share = len(batch.input_ids) / num_tokens
            total = total + weights.sequence_loss_weight * share * sequence_balance_loss(routing, lengths)
        total.backward()
        sums[0] += loss.detach()
        load = _stack_loads(output, model)
        loads = load if loads is None else loads + load
    if loads is None:
        raise ValueError("a step needs at least one batch")
    loads = ranks.sum_over_batch(loads)
    for router, load in zip(model.routers, loads, strict=False):
        update_correction_bias(router, load, weights.bias_update_rate)
    loss_sum, mtp_sum = ranks.sum_over_batch(sums).tolist()
    return StepResult(
        loss=loss_sum / max(num_labels, 1),
        mtp_loss=mtp_sum / max(num_mtp_labels, 1) if weights.mtp_loss_weight else float("nan"),
        load=loads / loads.sum(-1, keepdim=True).clamp(min=1),
    )


def _count_tokens(batches: list[PackedBatch]) -> Tensor:
    """Tokens that carry a loss, those that carry one of the MTP layer, and all tokens, int64 [3]."""
    counts = [
        (int((batch.labels != IGNORED).sum()), int((_shifted_labels(batch) != IGNORED).sum()), len(batch.input_ids))
        for batch in batches
    ]
    return torch.tensor(counts).sum(0)


def run_batch(model: Glm, batch: PackedBatch, *, with_mtp: bool) -> tuple[Output, Tensor]:
    """Forward pass of a packed batch; also gives the length of each document, int64 [N]."""
    device = model.lm_head.weight.device
    layout = DocumentLayout.from_cu_seqlens(batch.cu_seqlens)
    ids, positions = _int64(batch.input_ids, device), _int64(batch.position_ids, device)
    output = model(ids, positions, layout.to(device), with_mtp=with_mtp)
    return output, torch.tensor(layout.lengths, device=device)


def _stack_loads(output: Output, model: Glm) -> Tensor:
    loads = [expert_load(routing) for routing in output.routings]
    return torch.stack(loads) if loads else torch.zeros(0, model.config.n_routed_experts, dtype=torch.int64)


def _shifted_labels(batch: PackedBatch) -> np.ndarray:
    """Labels two tokens ahead: the next token's label, where the next token is of the same document."""
    labels = np.full_like(batch.labels, IGNORED)
    labels[:-1] = batch.labels[1:]
    labels[batch.cu_seqlens[1:] - 1] = IGNORED
    return labels


def _int64(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device)
