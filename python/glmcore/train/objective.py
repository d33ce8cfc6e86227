"""The loss of an optimiser step, micro-batch by micro-batch, and the figures that it leaves behind."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm, Output
from glmcore.model.layout import DocumentLayout
from glmcore.model.moe import expert_load, sequence_balance_loss
from glmcore.model.parallel.ranks import Ranks
from glmcore.model.parallel.stage import MicroBatch
from glmcore.packing import PackedBatch
from glmcore.train.config import BalanceConfig
from glmcore.train.loss import IGNORED, linear_cross_entropy


class Objective:
    """Loss of one step.

    Means are over the tokens of the whole step, on all ranks, so cutting it into micro-batches changes only rounding.
    The loss of a micro-batch is a sum of parts, and a stage of a pipeline makes those that it has the figures for: the
    last one the cross-entropies, each one the balance of its own routers.

    Args:
        batches: This rank's micro-batches, each of at least one row.
        weights: Weights of the losses.
        ranks: Who else works on the step.
    """

    def __init__(self, batches: Sequence[PackedBatch], weights: BalanceConfig, ranks: Ranks) -> None:
        self.weights = weights
        self.ranks = ranks
        self.num_labels = ranks.sum(sum(int((batch.labels != IGNORED).sum()) for batch in batches))
        self.num_mtp_labels = ranks.sum(sum(int((_shifted_labels(batch) != IGNORED).sum()) for batch in batches))
        self.num_tokens = ranks.sum(sum(len(batch.input_ids) for batch in batches))
        self.loss_sum = self.mtp_sum = 0.0
        self.loads: dict[int, Tensor] = {}
        """Tokens that chose each expert so far, int64 [E], of each layer with experts that ran here, by its number."""
        self.micro_batches = [
            MicroBatch(
                _int64(batch.input_ids),
                _int64(batch.position_ids),
                DocumentLayout.from_cu_seqlens(batch.cu_seqlens),
                weights.mtp_loss_weight > 0,
                partial(self._loss, batch),
            )
            for batch in batches
        ]

    def _loss(self, batch: PackedBatch, model: Glm, output: Output) -> Tensor:
        total = self._cross_entropies(batch, model, output) if model.has_head else output.hidden.new_zeros(())
        lengths = torch.from_numpy(np.diff(batch.cu_seqlens)).long()
        share = len(batch.input_ids) / self.num_tokens
        for number, routing in zip(
            model.moe_layer_numbers, output.routings, strict=False
        ):  # MTP's may have been left out
            total = total + self.weights.sequence_loss_weight * share * sequence_balance_loss(routing, lengths)
            load = expert_load(routing)
            self.loads[number] = self.loads[number] + load if number in self.loads else load
        return total

    def _cross_entropies(self, batch: PackedBatch, model: Glm, output: Output) -> Tensor:
        head = model.lm_head.weight
        loss = linear_cross_entropy(output.hidden, head, _int64(batch.labels))
        self.loss_sum += float(loss.detach())
        total = loss / max(self.num_labels, 1)
        if output.mtp_hidden is not None:
            mtp_loss = linear_cross_entropy(output.mtp_hidden, head, _int64(_shifted_labels(batch)))
            self.mtp_sum += float(mtp_loss.detach())
            total = total + self.weights.mtp_loss_weight * mtp_loss / max(self.num_mtp_labels, 1)
        return total

    def table_of_loads(self, config: GlmConfig) -> Tensor:
        """Tokens of the step that chose each expert, on all ranks, int64 [layers with experts that ran, E]."""
        first = config.first_k_dense_replace
        with_mtp = self.weights.mtp_loss_weight > 0 and config.num_nextn_predict_layers > 0
        table = torch.zeros(config.num_hidden_layers - first + with_mtp, config.n_routed_experts, dtype=torch.int64)
        for number, load in self.loads.items():
            table[number - first] = load
        return self.ranks.sum_over_pipeline(self.ranks.sum_over_batch(table))

    def losses(self) -> tuple[float, float]:
        """Mean next-token cross-entropy of the step in nats, and that of the token after; NaN without an MTP layer."""
        sums = torch.tensor([self.loss_sum, self.mtp_sum], dtype=torch.float64)
        loss, mtp_loss = self.ranks.sum_over_pipeline(self.ranks.sum_over_batch(sums)).tolist()
        with_mtp = self.weights.mtp_loss_weight > 0
        return loss / max(self.num_labels, 1), mtp_loss / max(self.num_mtp_labels, 1) if with_mtp else math.nan


def _shifted_labels(batch: PackedBatch) -> np.ndarray:
    """Labels two tokens ahead: the next token's label, where the next token is of the same document."""
    labels = np.full_like(batch.labels, IGNORED)
    labels[:-1] = batch.labels[1:]
    labels[batch.cu_seqlens[1:] - 1] = IGNORED
    return labels


def _int64(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
