"""Batches of synchronous reinforcement learning: every rollout comes from the weights that it trains."""

import time
from typing import Any

from glmcore.envs.protocol import Task
from glmcore.model.glm import Glm
from glmcore.rl.config import RLConfig
from glmcore.rl.loop import Batch
from glmcore.rl.rollout import Attempt, RolloutWorker, rollout_seed
from glmcore.rl.sync import WeightSync
from glmcore.rl.task_groups import observe
from glmcore.rl.tasks import TaskSource
from glmcore.trajectory import TrajectoryBuffer


class SynchronousSource:
    """Samples the groups of a step when they are asked for, with the newest weights.

    A run that is killed finds in the buffer the groups whose update it lost, and repeats exactly those updates.

    Args:
        config: Of the stage.
        model: The policy, whose weights the engine gets before each step.
        worker: Plays the rollouts.
        sync: Brings weights to the worker's engine.
        buffer: Holds the groups.
        tasks: What is tried.
        seed: Of the run.
    """

    def __init__(
        self,
        config: RLConfig,
        model: Glm,
        worker: RolloutWorker,
        sync: WeightSync,
        buffer: TrajectoryBuffer,
        tasks: TaskSource,
        seed: int,
    ) -> None:
        self.config = config
        self.model = model
        self.worker = worker
        self.sync = sync
        self.buffer = buffer
        self.tasks = tasks
        self.seed = seed

    def batch(self, step: int, version: int) -> Batch:
        """See `BatchSource.batch`."""
        synced = self.sync.push(self.model, version)
        started = time.perf_counter()
        self._collect(self.tasks.next(self.config.groups_per_step), step, version)
        lease = self.buffer.take(self.config.groups_per_step, version)
        seconds = time.perf_counter() - started
        samples = lease.samples()
        observe(self.tasks, samples)
        tokens = sum(int(sample.loss_mask.sum()) for sample in samples)
        figures = synced.figures() | {"rollout_seconds": seconds, "engine_tokens_per_s": tokens / seconds}
        return Batch(samples, lease, figures)

    def updated(self, step: int, version: int) -> dict[str, Any]:
        """The next batch brings the weights to the engine."""
        del step, version
        return {}

    def state_dict(self) -> dict[str, Any]:
        """See `BatchSource.state_dict`."""
        return {"tasks": self.tasks.state_dict()}

    def _collect(self, tasks: list[Task], step: int, version: int) -> None:
        """Fill the buffer with the groups of a step, unless an interrupted run has left all of them there."""
        left = [group for group in self.buffer.groups() if group.policy_version == version]
        if [group.task for group in left if group.state == "ready"] == [task.id for task in tasks]:
            return
        for group in left:
            self.buffer.discard(group.group_id)
        size = self.config.rollouts_per_group
        attempts: list[Attempt] = []
        for place, task in enumerate(tasks):
            group_id = self.buffer.admit(task.id, size, version, sync=False)
            for number, rollout_id in enumerate(self.buffer.rollouts(group_id)):
                attempts.append(Attempt(rollout_id, task, rollout_seed(self.seed, step, place, number)))
        self.worker.play_into(self.buffer, attempts)
