"""The loop over a stage's steps."""

import resource
import time

from torch import Tensor

from glmcore.data.prefetch import Loader, Rows
from glmcore.metrics import MetricLog
from glmcore.model.glm import Glm
from glmcore.model.parallel.ranks import Ranks
from glmcore.progress import progress
from glmcore.train.checkpoint import CheckpointStore, Progress
from glmcore.train.config import TrainConfig
from glmcore.train.optim import Optimizer
from glmcore.train.schedule import TrainPlan
from glmcore.train.step import train_step


class StageLoop:
    """Runs one stage from any of its steps to its end, saving on the way."""

    def __init__(
        self,
        config: TrainConfig,
        stage_index: int,
        model: Glm,
        optimizer: Optimizer,
        store: CheckpointStore,
        ranks: Ranks,
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

    def run(self, rows: Rows, first_step: int, metrics: MetricLog) -> None:
        """Run steps `first_step` to the last, counted from 1; the stage's end is always saved."""
        stage, steps, data = self.stage, self.steps, self.ranks.axis("data")
        self.model.rope_theta = stage.rope_theta
        loader = Loader(
            rows,
            rows_per_step=lambda number: steps.step(number + 1).rows,
            rows_per_micro_batch=stage.rows_per_micro_batch,
            first_step=first_step - 1,
            num_steps=steps.num_steps,
            rank=data.rank,
            num_ranks=data.size,
        )
        bar = progress(f"train {stage.name}", total=steps.num_tokens, unit="tokens", shown=self.ranks.is_first)
        with loader, bar as bar:
            bar.skip(steps.step(first_step).first_token - steps.first_token)
            for number in range(first_step, steps.num_steps + 1):
                started = time.perf_counter()
                step = steps.step(number)
                weights = self.plan.loss_weights(self.stage_index, number)
                result = train_step(self.model, next(loader), weights, self.ranks)
                rate = self.plan.learning_rate(self.stage_index, number)
                grad_norm = self.optimizer.step(rate)
                seconds = time.perf_counter() - started
                metrics.write(
                    stage.name,
                    number,
                    loss=result.loss,
                    mtp_loss=result.mtp_loss,
                    learning_rate=rate,
                    grad_norm=grad_norm,
                    tokens=step.num_tokens,
                    tokens_per_s=step.num_tokens / seconds,
                    seconds=seconds,
                    peak_gib=peak_memory_gib(),
                    **self._load_figures(result.load, number),
                )
                if number % self.config.checkpoint.every_steps == 0 or number == steps.num_steps:
                    self.store.save(Progress(self.stage_index, number), self.model, self.optimizer)
                bar.advance(step.num_tokens, loss=result.loss)

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
