"""One optimiser step's gradients."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glmcore.model.glm import Glm, Output
from glmcore.model.layout import DocumentLayout
from glmcore.model.moe import expert_load, sequence_balance_loss, update_correction_bias
from glmcore.model.parallel.context import ContextLayout
from glmcore.model.parallel.ranks import Axis, Ranks
from glmcore.packing import PackedBatch
from glmcore.train.config import StageConfig
from glmcore.train.loss import IGNORED, linear_cross_entropy


@dataclass(frozen=True)
class StepResult:
    """Figures of one optimiser step."""

    loss: float
    """Mean next-token cross-entropy in nats over the tokens that carry a loss."""
    mtp_loss: float
    """The same for the token after the next one; NaN without an MTP layer."""
    load: Tensor
    """Share of the routed tokens of each expert, float32 [layers, E]; rows sum to 1."""


def train_step(model: Glm, batches: list[PackedBatch], stage: StageConfig, ranks: Ranks) -> StepResult:
    """Add the gradients of one step's micro-batches and steer the routers; the optimiser is not called.

    Losses are means over the tokens of the whole step, on all ranks, so cutting it into micro-batches changes only
    rounding.

    Args:
        model: The model.
        batches: This rank's micro-batches, each of at least one row.
        stage: Weights of the losses.
        ranks: Who else works on the step.
    """
    balance = stage.balance
    context = ranks.axis("context")  # its ranks have the same batches, so each counts its part of them
    num_labels = ranks.sum(sum(int((batch.labels != IGNORED).sum()) for batch in batches) / context.size)
    num_mtp_labels = ranks.sum(sum(int((_shifted_labels(batch) != IGNORED).sum()) for batch in batches) / context.size)
    num_tokens = ranks.sum(sum(len(batch.input_ids) for batch in batches) / context.size)
    loss_sum = mtp_sum = 0.0
    loads: Tensor | None = None
    for batch in batches:
        output, layout = run_batch(model, batch, with_mtp=balance.mtp_loss_weight > 0, context=context)
        head = model.lm_head.weight
        loss = linear_cross_entropy(output.hidden, head, layout.local(_int64(batch.labels)))
        total = loss / max(num_labels, 1)
        if output.mtp_hidden is not None:
            mtp_labels = layout.local(_int64(_shifted_labels(batch)))
            mtp_loss = linear_cross_entropy(output.mtp_hidden, head, mtp_labels)
            total = total + balance.mtp_loss_weight * mtp_loss / max(num_mtp_labels, 1)
            mtp_sum += float(mtp_loss.detach())
        lengths = torch.tensor(layout.lengths)
        shared = layout if isinstance(layout, ContextLayout) else None
        for routing in output.routings:
            share = len(batch.input_ids) / num_tokens
            total = total + balance.sequence_loss_weight * share * sequence_balance_loss(routing, lengths, shared)
        total.backward()
        loss_sum += float(loss.detach())
        load = _stack_loads(output, model)
        loads = load if loads is None else loads + load
    if loads is None:
        raise ValueError("a step needs at least one batch")
    loads = ranks.sum_over_batch(loads)
    for router, load in zip(model.routers, loads, strict=False):
        update_correction_bias(router, load, balance.bias_update_rate)
    return StepResult(
        loss=ranks.sum(loss_sum) / max(num_labels, 1),
        mtp_loss=ranks.sum(mtp_sum) / max(num_mtp_labels, 1) if balance.mtp_loss_weight else float("nan"),
        load=loads / loads.sum(-1, keepdim=True).clamp(min=1),
    )


def run_batch(
    model: Glm, batch: PackedBatch, *, with_mtp: bool, context: Axis
) -> tuple[Output, DocumentLayout | ContextLayout]:
    """Forward pass of this rank's tokens of a packed batch; also says where its documents and those tokens lie."""
    if context.size == 1:
        layout = DocumentLayout.from_cu_seqlens(batch.cu_seqlens)
    else:
        layout = ContextLayout.from_cu_seqlens(batch.cu_seqlens, context)
    output = model(_int64(batch.input_ids), _int64(batch.position_ids), layout, with_mtp=with_mtp)
    return output, layout


def _stack_loads(output: Output, model: Glm) -> Tensor:
    loads = [expert_load(routing) for routing in output.routings]
    return torch.stack(loads) if loads else torch.zeros(0, model.config.n_routed_experts, dtype=torch.int64)


def _shifted_labels(batch: PackedBatch) -> np.ndarray:
    """Labels two tokens ahead: the next token's label, where the next token is of the same document."""
    labels = np.full_like(batch.labels, IGNORED)
    labels[:-1] = batch.labels[1:]
    labels[batch.cu_seqlens[1:] - 1] = IGNORED
    return labels


def _int64(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
