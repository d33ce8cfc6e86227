"""One optimiser step and the loop over a stage's steps."""

import resource
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glmcore.data.prefetch import Loader, Rows
from glmcore.metrics import MetricLog
from glmcore.model.glm import Glm, Output
from glmcore.model.layout import DocumentLayout
from glmcore.model.moe import expert_load, sequence_balance_loss, update_correction_bias
from glmcore.packing import PackedBatch
from glmcore.progress import progress
from glmcore.train.checkpoint import CheckpointStore, Progress
from glmcore.train.config import StageConfig, TrainConfig
from glmcore.train.loss import IGNORED, linear_cross_entropy
from glmcore.train.optim import Optimizer
from glmcore.train.schedule import learning_rate


@dataclass(frozen=True)
class StepResult:
    """Figures of one optimiser step."""

    loss: float
    """Mean next-token cross-entropy in nats over the tokens that carry a loss."""
    mtp_loss: float
    """The same for the token after the next one; NaN without an MTP layer."""
    load: Tensor
    """Share of the routed tokens of each expert, float32 [layers, E]; rows sum to 1."""


def train_step(model: Glm, batches: list[PackedBatch], stage: StageConfig) -> StepResult:
    """Add the gradients of one step's micro-batches and steer the routers; the optimiser is not called.

    Losses are means over the tokens of the whole step, so cutting it into micro-batches changes only rounding.
    """
    balance = stage.balance
    num_labels = sum(int((batch.labels != IGNORED).sum()) for batch in batches)
    num_mtp_labels = sum(int((_shifted_labels(batch) != IGNORED).sum()) for batch in batches)
    num_tokens = sum(len(batch.input_ids) for batch in batches)
    loss_sum = mtp_sum = 0.0
    loads: Tensor | None = None
    for batch in batches:
        output, lengths = run_batch(model, batch, with_mtp=balance.mtp_loss_weight > 0)
        head = model.lm_head.weight
        loss = linear_cross_entropy(output.hidden, head, _int64(batch.labels))
        total = loss / max(num_labels, 1)
        if output.mtp_hidden is not None:
            mtp_loss = linear_cross_entropy(output.mtp_hidden, head, _int64(_shifted_labels(batch)))
            total = total + balance.mtp_loss_weight * mtp_loss / max(num_mtp_labels, 1)
            mtp_sum += float(mtp_loss.detach())
        for routing in output.routings:
            share = len(batch.input_ids) / num_tokens
            total = total + balance.sequence_loss_weight * share * sequence_balance_loss(routing, lengths)
        total.backward()
        loss_sum += float(loss.detach())
        load = _stack_loads(output, model)
        loads = load if loads is None else loads + load
    if loads is None:
        raise ValueError("a step needs at least one batch")
    for router, load in zip(model.routers, loads, strict=False):
        update_correction_bias(router, load, balance.bias_update_rate)
    return StepResult(
        loss=loss_sum / max(num_labels, 1),
        mtp_loss=mtp_sum / max(num_mtp_labels, 1) if balance.mtp_loss_weight else float("nan"),
        load=loads / loads.sum(-1, keepdim=True).clamp(min=1),
    )


def run_batch(model: Glm, batch: PackedBatch, *, with_mtp: bool) -> tuple[Output, Tensor]:
    """Forward pass of a packed batch; also gives the length of each document, int64 [N]."""
    layout = DocumentLayout.from_cu_seqlens(batch.cu_seqlens)
    output = model(_int64(batch.input_ids), _int64(batch.position_ids), layout, with_mtp=with_mtp)
    return output, torch.tensor(layout.lengths)


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


class StageLoop:
    """Runs one stage from any of its steps to its end, saving on the way."""

    def __init__(
        self, config: TrainConfig, stage_index: int, model: Glm, optimizer: Optimizer, store: CheckpointStore
    ) -> None:
        self.config = config
        self.stage_index = stage_index
        self.stage = config.stages[stage_index]
        self.model = model
        self.optimizer = optimizer
        self.store = store

    def run(self, rows: Rows, first_step: int, metrics: MetricLog) -> None:
        """Run steps `first_step` to the last, counted from 1; the stage's end is always saved."""
        stage = self.stage
        self.model.rope_theta = stage.rope_theta
        tokens_per_step = stage.rows_per_step * stage.sequence_length
        loader = Loader(
            rows,
            rows_per_step=stage.rows_per_step,
            rows_per_micro_batch=min(stage.rows_per_micro_batch or stage.rows_per_step, stage.rows_per_step),
            first_step=first_step - 1,
            num_steps=stage.num_steps,
        )
        with loader, progress(f"train {stage.name}", total=stage.num_steps * tokens_per_step, unit="tokens") as bar:
            bar.skip((first_step - 1) * tokens_per_step)
            for step in range(first_step, stage.num_steps + 1):
                started = time.perf_counter()
                result = train_step(self.model, next(loader), stage)
                rate = learning_rate(self.config, self.stage_index, step)
                grad_norm = self.optimizer.step(rate)
                seconds = time.perf_counter() - started
                metrics.write(
                    stage.name,
                    step,
                    loss=result.loss,
                    mtp_loss=result.mtp_loss,
                    learning_rate=rate,
                    grad_norm=grad_norm,
                    tokens=tokens_per_step,
                    tokens_per_s=tokens_per_step / seconds,
                    seconds=seconds,
                    peak_gib=peak_memory_gib(),
                    **self._load_figures(result.load, step),
                )
                if step % self.config.checkpoint.every_steps == 0 or step == stage.num_steps:
                    self.store.save(Progress(self.stage_index, step), self.model, self.optimizer)
                bar.advance(tokens_per_step, loss=result.loss)

    def _load_figures(self, load: Tensor, step: int) -> dict[str, object]:
        if not len(load):
            return {}
        figures: dict[str, object] = {"max_violation": float((load.amax(-1) * load.shape[-1] - 1).max())}
        every = self.config.log_load_every_steps
        if every and (step % every == 0 or step == 1):
            figures["expert_load"] = [[round(share, 5) for share in layer] for layer in load.tolist()]
        return figures


def peak_memory_gib() -> float:
    """Largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
