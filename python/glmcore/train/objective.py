"""The loss of an optimiser step, micro-batch by micro-batch, and the figures that it leaves behind."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm, Output
from glmcore.model.layout import DocumentLayout
from glmcore.model.moe import expert_load, sequence_balance_loss
from glmcore.model.parallel.context import ContextLayout, layout_of
from glmcore.model.parallel.ranks import Ranks
from glmcore.model.parallel.stage import MicroBatch
from glmcore.packing import PackedBatch
from glmcore.train.loss import IGNORED, linear_cross_entropy
from glmcore.train.schedule import LossWeights


class Objective:
    """Loss of one step.

    Means are over the tokens of the whole step, on all ranks, so cutting it into micro-batches changes only rounding.
    The loss of a micro-batch is a sum of parts, and a stage of a pipeline makes those that it has the figures for: the
    last one the cross-entropies, each one the balance of its own routers.

    Args:
        config: The model.
        batches: This rank's micro-batches, each of at least one row.
        weights: Weights of the losses.
        ranks: Who else works on the step.
    """

    def __init__(self, config: GlmConfig, batches: Sequence[PackedBatch], weights: LossWeights, ranks: Ranks) -> None:
        if not batches:
            raise ValueError("a step needs at least one batch")
        self.config = config
        self.weights = weights
        self.with_mtp = weights.mtp_loss_weight > 0 and config.num_nextn_predict_layers > 0
        self.ranks = ranks
        self.batches = batches
        counts = ranks.sum_over_batch(_count_tokens(batches)) // ranks.config.context  # which have the same batches
        self.num_labels, self.num_mtp_labels, self.num_tokens = counts.tolist()
        self._sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)  # of the losses of next tokens and of MTP
        self._loads: dict[int, Tensor] = {}
        """Tokens that chose each expert so far, int64 [E], of each layer with experts that ran here, by its number."""

    def micro_batches(self) -> Iterator[MicroBatch]:
        """The batches on the device, with this loss."""
        device, context = self.ranks.device, self.ranks.axis("context")
        for batch in self.batches:
            layout = layout_of(batch.cu_seqlens, context).to(device)
            ids, positions = _int64(batch.input_ids, device), _int64(batch.position_ids, device)
            yield MicroBatch(ids, positions, layout, self.with_mtp, partial(self._loss, batch, layout))

    def _loss(self, batch: PackedBatch, layout: DocumentLayout | ContextLayout, model: Glm, output: Output) -> Tensor:
        device = self.ranks.device
        total = torch.zeros((), device=device)
        if model.has_head:
            total = self._cross_entropies(batch, layout, model.lm_head.weight, output)
        lengths = layout.cu_seqlens.diff().long()
        shared = layout if isinstance(layout, ContextLayout) else None
        weight = self.weights.sequence_loss_weight * len(batch.input_ids) / self.num_tokens
        for number, routing in zip(model.moe_layer_numbers, output.routings, strict=False):  # without MTP one less
            total = total + weight * sequence_balance_loss(routing, lengths, shared)
            load = expert_load(routing)
            self._loads[number] = self._loads[number] + load if number in self._loads else load
        return total

    def _cross_entropies(
        self, batch: PackedBatch, layout: DocumentLayout | ContextLayout, head: Tensor, output: Output
    ) -> Tensor:
        device = self.ranks.device
        loss = linear_cross_entropy(output.hidden, head, layout.local(_int64(batch.labels, device)))
        self._sums[0] += loss.detach()
        total = loss / max(self.num_labels, 1)
        if output.mtp_hidden is not None:
            labels = layout.local(_int64(_shifted_labels(batch), device))
            mtp_loss = linear_cross_entropy(output.mtp_hidden, head, labels)
            self._sums[1] += mtp_loss.detach()
            total = total + self.weights.mtp_loss_weight * mtp_loss / max(self.num_mtp_labels, 1)
        return total

    def loads(self) -> Tensor:
        """Tokens of the step that chose each expert, on all ranks, int64 [layers with experts that ran, E]."""
        first = self.config.first_k_dense_replace
        shape = (self.config.num_hidden_layers - first + self.with_mtp, self.config.n_routed_experts)
        table = torch.zeros(shape, dtype=torch.int64, device=self.ranks.device)
        for number, load in self._loads.items():
            table[number - first] = load
        return self.ranks.sum_over_pipeline(self.ranks.sum_over_batch(table))

    def losses(self) -> tuple[float, float]:
        """Mean next-token cross-entropy of the step in nats, and that of the token after; NaN without an MTP layer."""
        loss, mtp_loss = self.ranks.sum_over_pipeline(self.ranks.sum_over_batch(self._sums)).tolist()
        return loss / max(self.num_labels, 1), mtp_loss / max(self.num_mtp_labels, 1) if self.with_mtp else math.nan


def _count_tokens(batches: Sequence[PackedBatch]) -> Tensor:
    """Tokens that carry a loss, those that carry one of the MTP layer, and all tokens, int64 [3]."""
    counts = [
        (int((batch.labels != IGNORED).sum()), int((_shifted_labels(batch) != IGNORED).sum()), len(batch.input_ids))
        for batch in batches
    ]
    return torch.tensor(counts).sum(0)


def _shifted_labels(batch: PackedBatch) -> np.ndarray:
    """Labels two tokens ahead: the next token's label, where the next token is of the same document."""
    labels = np.full_like(batch.labels, IGNORED)
    labels[:-1] = batch.labels[1:]
    labels[batch.cu_seqlens[1:] - 1] = IGNORED
    return labels


def _int64(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device)
