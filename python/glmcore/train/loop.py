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
from glmcore.train.schedule import learning_rate
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
        self.model = model
        self.optimizer = optimizer
        self.store = store
        self.ranks = ranks

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
                result = train_step(self.model, next(loader), stage, self.ranks)
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
