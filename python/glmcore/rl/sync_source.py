"""Batches of synchronous reinforcement learning: every rollout comes from the weights that it trains."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from glmcore.envs.protocol import Task
from glmcore.model.glm import Glm
from glmcore.rl.config import RLConfig
from glmcore.rl.curriculum.course import Course
from glmcore.rl.loop import Batch, TaskRewards, task_rewards
from glmcore.rl.rollout import Rollout, RolloutWorker
from glmcore.rl.seeds import seed_of
from glmcore.rl.sync import WeightSync
from glmcore.trajectory import TrajectoryBuffer, WholeRollout


class SynchronousSource:
    """Samples the groups of a step when they are asked for, with the newest weights.

    A run that is killed finds in the buffer the groups whose update it lost, and repeats exactly those updates. Groups
    go to the disk while they are trained on, and are there before the next are sampled.

    Args:
        config: Of the stage.
        model: The policy, whose weights the engine gets before each step.
        worker: Plays the rollouts.
        sync: Brings weights to the worker's engine.
        buffer: Holds the groups.
        course: Tasks and settings of every step.
        seed: Of the run.
    """

    def __init__(
        self,
        config: RLConfig,
        model: Glm,
        worker: RolloutWorker,
        sync: WeightSync,
        buffer: TrajectoryBuffer,
        course: Course,
        seed: int,
    ) -> None:
        self.config = config
        self.model = model
        self.worker = worker
        self.sync = sync
        self.buffer = buffer
        self.course = course
        self.seed = seed
        self._disk = ThreadPoolExecutor(1, "buffer")
        self._flushed: Future[None] | None = None

    def batch(self, step: int, version: int) -> Batch:
        """See `BatchSource.batch`."""
        self._wait_for_disk()
        synced = self.sync.push(self.model, version)
        started = time.perf_counter()
        sampled = self._collect(step, version)
        lease = self.buffer.take(self.config.groups_per_step, version)
        self._flushed = self._disk.submit(self.buffer.flush)
        seconds = time.perf_counter() - started
        samples = lease.samples()
        tokens = sum(int(sample.loss_mask.sum()) for sample in samples)
        figures = synced.figures() | {"rollout_seconds": seconds, "engine_tokens_per_s": tokens / seconds}
        return Batch(samples, sampled or task_rewards(samples), lease, figures)

    def updated(self, step: int, version: int) -> dict[str, Any]:
        """The next batch brings the weights to the engine."""
        del step, version
        return {}

    def state_dict(self) -> dict[str, Any]:
        """See `BatchSource.state_dict`."""
        self._wait_for_disk()
        return {"course": self.course.state_dict()}

    def close(self) -> None:
        """Wait until the disk has what is in the buffer.

        Raises:
            TrajectoryError: It cannot be written.
        """
        self._disk.shutdown()
        self._wait_for_disk()

    def _wait_for_disk(self) -> None:
        flushed, self._flushed = self._flushed, None
        if flushed is not None:
            flushed.result()

    def _collect(self, step: int, version: int) -> list[TaskRewards]:
        """Fill the buffer with the groups of a step; gives the rewards of all that were sampled for it, in order.

        Gives none if an interrupted run has left all of them in the buffer. With dynamic sampling they are sampled
        again, since the buffer does not have those that were dropped.
        """
        wanted = self.config.groups_per_step
        quota = self.course.quota()
        left = [group for group in self.buffer.groups() if group.policy_version == version]
        tasks = self.course.tasks.next(wanted if quota is None else quota.wanted())
        if quota is None and [group.task for group in left if group.state == "ready"] == [task.id for task in tasks]:
            return []
        for group in left:
            self.buffer.discard(group.group_id)
        sampled = self._roll_out(tasks, step, 0)
        kept = [group for group in sampled if quota is None or quota.offer(_rewards(group))]
        while quota is not None and (more := quota.wanted()):
            extra = self._roll_out(self.course.tasks.next(more), step, len(sampled))
            sampled += extra
            kept += [group for group in extra if quota.offer(_rewards(group))]
        missing = wanted - len(kept)
        if missing > 0:  # groups of equal rewards, which have no gradient, keep the batch whole
            kept += [group for group in sampled if not any(group is other for other in kept)][:missing]
        whole: list[WholeRollout] = []
        for group in kept:
            group_id = self.buffer.admit(group[0].problem.id, len(group), version, sync=False)
            numbers = self.buffer.rollouts(group_id)
            whole += [rollout.as_rollout(number) for number, rollout in zip(numbers, group, strict=True)]
        self.buffer.write(whole)
        return [(group[0].problem.id, _rewards(group)) for group in sampled]

    def _roll_out(self, tasks: Sequence[Task], step: int, first_group: int) -> list[list[Rollout]]:
        """A group of rollouts for each task; `first_group` counts the groups of the step before them."""
        size = self.config.rollouts_per_group
        settings = self.course.settings(step)
        self.worker.temperature = settings.temperature
        self.worker.max_tokens = settings.max_response_tokens
        rollouts = self.worker.roll_out(
            [task for task in tasks for _ in range(size)],
            [seed_of(self.seed, step, first_group + g, r) for g in range(len(tasks)) for r in range(size)],
        )
        return [rollouts[start : start + size] for start in range(0, len(rollouts), size)]


def _rewards(group: Sequence[Rollout]) -> list[float]:
    return [rollout.reward for rollout in group if rollout.failed is None]
