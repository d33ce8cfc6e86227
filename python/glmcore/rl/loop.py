"""The loop of reinforcement learning: a batch, an update, a record, and now and then a checkpoint.

Where a batch comes from makes the mode: sampled just now from the newest weights (`glmcore.rl.sync_source`), beside
training (`glmcore.rl.async_source`), or recorded by an earlier run (`glmcore.rl.replay`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from glmcore.metrics import MetricLog
from glmcore.progress import progress
from glmcore.rl.checkpointing import LoopCheckpoints
from glmcore.rl.config import RLConfig
from glmcore.rl.update import PolicyUpdate, sample_figures, staleness_histogram
from glmcore.train.loop import peak_memory_gib
from glmcore.trajectory import Lease, Sample


@dataclass(frozen=True)
class Batch:
    """What one step trains on."""

    samples: Sequence[Sample]
    lease: Lease | None = None
    """Of the buffer that they come from, if they do."""
    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    """What to log of how they came about."""


class BatchSource(Protocol):
    """Where the batches come from. Versions count optimiser steps."""

    def batch(self, step: int, version: int) -> Batch:
        """The groups of a step, to be trained on at `version`; waits for them."""
        ...

    def updated(self, step: int, version: int) -> dict[str, Any]:
        """The step is done: the model now holds the weights of `version`. Gives what to log of their way to engines."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold of the source, plain JSON values."""
        ...


class Loop:
    """Runs the steps.

    Args:
        config: Of the stage.
        source: Gives the batches.
        update: Trains on them.
        checkpoints: Keep what was trained.
        after_step: Called with the number of each finished step, after its checkpoint.
    """

    def __init__(
        self,
        config: RLConfig,
        source: BatchSource,
        update: PolicyUpdate,
        checkpoints: LoopCheckpoints,
        after_step: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.source = source
        self.update = update
        self.checkpoints = checkpoints
        self.after_step = after_step

    def run(self, first_step: int, metrics: MetricLog) -> None:
        """Run steps `first_step` to the last, counted from 1; each is recorded in `metrics`.

        Raises:
            GlmcoreError: A checkpoint, the buffer's log or a weight update failed; the run can be gone on with.
        """
        config = self.config
        with progress("train rl", total=config.num_steps, unit="steps") as bar:
            bar.skip(first_step - 1)
            for step in range(first_step, config.num_steps + 1):
                reward = self._step(step, metrics)
                if step % config.checkpoint_every_steps == 0 or step == config.num_steps:
                    metrics.sync()
                    self.checkpoints.save(step, self.source.state_dict())
                bar.advance(1, reward=reward)
                self.after_step(step)

    def _step(self, step: int, metrics: MetricLog) -> float:
        """Train one step; gives the mean reward of its rollouts."""
        started = time.perf_counter()
        updates = self.config.updates_per_step
        version = (step - 1) * updates
        batch = self.source.batch(step, version)
        self.checkpoints.used(batch.lease)
        begun = time.perf_counter()
        figures: dict[str, Any] = self.update.run(batch.samples, step)
        train_seconds = time.perf_counter() - begun
        figures |= sample_figures(batch.samples) | batch.figures | self.source.updated(step, version + updates)
        seconds = time.perf_counter() - started
        tokens = sum(len(sample.ids) for sample in batch.samples)
        metrics.write(
            "rl",
            step,
            **figures,
            policy_version=version,
            staleness=staleness_histogram(batch.samples, version + updates - 1),
            tokens=tokens,
            tokens_per_s=tokens / seconds,
            seconds=seconds,
            train_seconds=train_seconds,
            trainer_tokens_per_s=tokens / train_seconds,
            peak_gib=peak_memory_gib(),
        )
        return figures["reward_mean"]
