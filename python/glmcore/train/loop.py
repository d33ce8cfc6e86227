"""The loop over a stage's steps."""

import resource
import time
from typing import Any

import torch

from glmcore.data.prefetch import Loader, Rows
from glmcore.metrics import MetricLog
from glmcore.model.flops import training_flops
from glmcore.model.glm import Glm
from glmcore.model.moe import RouterFigures
from glmcore.model.parallel.ranks import Ranks
from glmcore.packing import PackedBatch
from glmcore.progress import progress
from glmcore.train.checkpoint import CheckpointStore, Progress
from glmcore.train.config import TrainConfig
from glmcore.train.nonfinite import stop_unless_finite
from glmcore.train.optim import Optimizer
from glmcore.train.peak import batch_flops
from glmcore.train.schedule import TrainPlan
from glmcore.train.spikes import SpikeGuard
from glmcore.train.step import train_step
from glmcore.train.validation import Validation


class StageLoop:
    """Runs one stage from any of its steps to its end, saving on the way.

    Args:
        config: All stages.
        stage_index: Which of them.
        model: The model.
        optimizer: Its optimiser.
        store: Where checkpoints go.
        ranks: Who else works on the run.
        validation: Held-out rows, if the loss on them is wanted.
        peak_flops: What the device of a rank reaches, operations a second, for the share of it that is used; None
            leaves that out.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage_index: int,
        model: Glm,
        optimizer: Optimizer,
        store: CheckpointStore,
        ranks: Ranks,
        *,
        validation: Validation | None = None,
        peak_flops: float | None = None,
    ) -> None:
        self.config = config
        self.stage_index = stage_index
        self.stage = config.stages[stage_index]
        self.plan = TrainPlan(config)
        self.steps = self.plan.stages[stage_index]
        self.model = model
        self.optimizer = optimizer
        self.store = store
        self.ranks = ranks
        self.validation = validation
        self.peak_flops = peak_flops
        self.flops = training_flops(model.config)

    def run(self, rows: Rows, first_step: int, metrics: MetricLog) -> None:
        """Run steps `first_step` to the last, counted from 1; the stage's end is always saved.

        Args:
            rows: Rows of the stage.
            first_step: First step to run.
            metrics: Has the records of the stage's earlier steps and receives one a step.

        Raises:
            RunError: The loss or the gradient of a step is not finite.
        """
        stage, steps, data = self.stage, self.steps, self.ranks.axis("data")
        self.model.rope_theta = stage.rope_theta
        earlier = [r for r in metrics.read() if r["stage"] == stage.name and r["step"] < first_step]
        known = self.ranks.from_first([(record["loss"], record["grad_norm"]) for record in earlier])
        guard = SpikeGuard(self.config.spikes, known)
        loader = Loader(
            rows,
            rows_per_step=lambda number: steps.step(number + 1).rows,
            rows_per_micro_batch=stage.rows_per_micro_batch,
            first_step=first_step - 1,
            num_steps=steps.num_steps,
            rank=data.rank,
            num_ranks=data.size,
        )
        shown = progress(f"train {stage.name}", total=steps.num_tokens, unit="tokens", shown=self.ranks.is_first)
        with loader, shown as bar:
            bar.skip(steps.step(first_step).first_token - steps.first_token)
            for number in range(first_step, steps.num_steps + 1):
                figures = self._step(number, loader, rows, guard, metrics)
                figures |= self._validation_figures(number)
                if self.ranks.is_first:
                    metrics.write(stage.name, number, **figures)
                if number % self.config.checkpoint.every_steps == 0 or number == steps.num_steps:
                    metrics.sync()  # a checkpoint never knows of a step that the records do not
                    self.store.save(Progress(self.stage_index, number), self.model, self.optimizer)
                bar.advance(steps.step(number).num_tokens, loss=figures["loss"])
            self.store.wait()

    def _step(self, number: int, loader: Loader, rows: Rows, guard: SpikeGuard, metrics: MetricLog) -> dict[str, Any]:
        """Train on one step's rows; gives its record."""
        started = time.perf_counter()
        step, batches = self.steps.step(number), next(loader)
        result = train_step(self.model, batches, self.plan.loss_weights(self.stage_index, number), self.ranks)
        rate = self.plan.learning_rate(self.stage_index, number)
        limit = guard.max_grad_norm(result.loss)
        grad_norm = self.optimizer.step(rate, skip_above=limit)
        seconds = time.perf_counter() - started
        stop_unless_finite(
            metrics.path.parent,
            self.stage.name,
            number,
            rows,
            step.rows,
            {"loss": result.loss, "grad_norm": grad_norm},
            writes=self.ranks.is_first,
        )
        guard.add(result.loss, grad_norm)
        skipped = {"skipped": True} if grad_norm > limit else {}
        return {
            "loss": result.loss,
            "mtp_loss": result.mtp_loss,
            "learning_rate": rate,
            "grad_norm": grad_norm,
            **skipped,
            "tokens": step.num_tokens,
            "tokens_per_s": step.num_tokens / seconds,
            "seconds": seconds,
            **self._mfu(batches, seconds),
            **memory_figures(),
            **self._load_figures(result.routers, number),
        }

    def _mfu(self, batches: list[PackedBatch], seconds: float) -> dict[str, float]:
        """Share of the measured peak of all ranks that forward and backward pass need; nothing for recomputing."""
        if self.peak_flops is None:
            return {}
        own = sum(batch_flops(self.flops, batch) for batch in batches) / self.ranks.axis("context").size
        return {"mfu": self.ranks.sum(own) / (seconds * self.peak_flops * self.ranks.config.num_ranks)}

    def _load_figures(self, routers: RouterFigures, number: int) -> dict[str, Any]:
        """How the experts share the tokens."""
        if not len(routers.share):
            return {}
        figures: dict[str, Any] = {
            "max_violation": float(routers.max_violation.max()),
            "dead_experts": int(routers.num_dead.sum()),
        }
        every = self.config.log_load_every_steps
        if every and (number % every == 0 or number == 1):
            figures["expert_load"] = [[round(share, 5) for share in layer] for layer in routers.share.tolist()]
        return figures

    def _validation_figures(self, number: int) -> dict[str, Any]:
        config = self.config.validation
        if self.validation is None or config is None:
            return {}
        if number % config.every_steps and number != self.steps.num_steps:
            return {}
        started = time.perf_counter()
        losses = self.validation.losses(self.model, self.ranks)
        return {"validation_loss": losses, "validation_seconds": time.perf_counter() - started}


def memory_figures() -> dict[str, float]:
    """Largest memory so far, in GiB: resident memory of this process, and on a GPU what PyTorch has allocated there."""
    figures = {"peak_gib": peak_memory_gib()}
    if torch.cuda.is_initialized():
        figures["peak_device_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def peak_memory_gib() -> float:
    """Largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
