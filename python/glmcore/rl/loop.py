"""The loop of reinforcement learning: a batch, an update, a record, and now and then a checkpoint.

Where a batch comes from makes the mode: sampled just now from the newest weights (`glmcore.rl.sync_source`), beside
training (`glmcore.rl.async_source`), or recorded by an earlier run (`glmcore.rl.replay`).
"""

import contextlib
import gc
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from glmcore.errors import RunError
from glmcore.metrics import MetricLog
from glmcore.progress import progress
from glmcore.rl.checkpointing import LoopCheckpoints
from glmcore.rl.config import RLConfig
from glmcore.rl.curriculum.course import Course, StepSettings
from glmcore.rl.update import PolicyUpdate, sample_figures, staleness_histogram
from glmcore.train.loop import peak_memory_gib
from glmcore.trajectory import Lease, Sample

TaskRewards = tuple[str, list[float]]
"""Task and rewards of a group; failed rollouts have none."""


@dataclass(frozen=True)
class Batch:
    """What one step trains on."""

    samples: Sequence[Sample]
    sampled: list[TaskRewards]
    """Of every group that was sampled for the step, those among them that are not trained on."""
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
        """What a checkpoint must hold of source and course, plain JSON values."""
        ...


class Examination(Protocol):
    """Held-out tasks, answered with the newest weights."""

    def run_if_due(self, finished_steps: int, settings: StepSettings) -> None:
        """Answer the suites that are due after so many steps."""
        ...

    def held_out_reward(self, temperature: float, settings: StepSettings, version: int) -> float:
        """Mean reward at a temperature, otherwise sampled as a step, of the model's weights, which are of `version`."""
        ...


class Loop:
    """Runs the steps.

    Args:
        config: Of the stage.
        source: Gives the batches.
        update: Trains on them.
        checkpoints: Keep what was trained.
        course: Decides between the steps.
        examination: Held-out tasks that are answered on the way.
        after_step: Called with the number of each finished step, after its checkpoint.
    """

    def __init__(
        self,
        config: RLConfig,
        source: BatchSource,
        update: PolicyUpdate,
        checkpoints: LoopCheckpoints,
        course: Course,
        examination: Examination | None = None,
        after_step: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.source = source
        self.update = update
        self.checkpoints = checkpoints
        self.course = course
        self.examination = examination
        self.after_step = after_step

    def run(self, first_step: int, metrics: MetricLog) -> None:
        """Run steps `first_step` to the last, counted from 1; each is recorded in `metrics`.

        Raises:
            GlmcoreError: A checkpoint, the buffer's log or a weight update failed; the run can be gone on with.
        """
        config = self.config
        with progress("train rl", total=config.max_steps, unit="steps") as bar, _old_objects_at_rest():
            bar.skip(first_step - 1)
            for step in range(first_step, config.max_steps + 1):
                self._examine(step - 1, self.course.settings(step))
                reward = self._step(step, metrics)
                if step % config.checkpoint_every_steps == 0 or step == config.max_steps:
                    metrics.sync()
                    self.checkpoints.save(step, self.source.state_dict())
                bar.advance(1, reward=reward)
                self.after_step(step)
        self._examine(config.max_steps, self.course.settings(config.max_steps))

    def _examine(self, finished_steps: int, settings: StepSettings) -> None:
        if self.examination is not None:
            self.examination.run_if_due(finished_steps, settings)

    def _step(self, step: int, metrics: MetricLog) -> float:
        """Train one step; gives the mean reward of its rollouts."""
        started = time.perf_counter()
        updates = self.config.updates_per_step
        version = (step - 1) * updates
        settings = self.course.settings(step)
        batch = self.source.batch(step, version)
        self.checkpoints.used(batch.lease)
        begun = time.perf_counter()
        figures: dict[str, Any] = self.update.run(batch.samples, step, version, settings)
        train_seconds = time.perf_counter() - begun
        figures |= sample_figures(batch.samples) | batch.figures
        judged = [group for group in batch.sampled if group[1]]
        if judged:
            figures |= self.course.finish_step(
                step, judged, partial(self._held_out_reward, settings, version + updates)
            )
        figures |= self.source.updated(step, version + updates)
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

    def _held_out_reward(self, settings: StepSettings, version: int, temperature: float) -> float:
        if self.examination is None:
            raise RunError("a temperature is chosen on held-out tasks, and there are none")
        return self.examination.held_out_reward(temperature, settings, version)


@contextlib.contextmanager
def _old_objects_at_rest() -> Generator[None, None, None]:
    """Leave the objects that are there already out of garbage collections, in which they take a tenth of a second."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def rewards_by_group(samples: Sequence[Sample]) -> dict[int, TaskRewards]:
    """Task and rewards of each group."""
    groups: dict[int, TaskRewards] = {}
    for sample in samples:
        rewards = groups.setdefault(sample.group_id, (sample.task, []))[1]
        if sample.failed is None:
            rewards.append(sample.reward)
    return groups


def task_rewards(samples: Sequence[Sample]) -> list[TaskRewards]:
    """Task and rewards of each group, in the order of admission."""
    groups = rewards_by_group(samples)
    return [groups[group_id] for group_id in sorted(groups)]
