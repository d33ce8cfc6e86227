"""Batches of asynchronous reinforcement learning: sampling goes on while the trainer trains."""

import contextlib
from typing import Any, Protocol

from glmcore.errors import NotReadyError
from glmcore.fp8.publisher import Publication
from glmcore.model.glm import Glm
from glmcore.rl.async_scheduler import RolloutScheduler
from glmcore.rl.async_thread import LoopThread
from glmcore.rl.config import RLConfig
from glmcore.rl.loop import Batch, TaskRewards, rewards_by_group
from glmcore.rl.measured import TRAINER
from glmcore.rl.replay import BatchRecord
from glmcore.rl.sync import WeightSync
from glmcore.rl.timeline import Timeline, Window
from glmcore.trajectory import Lease, TrajectoryBuffer

POLL_SECONDS = 0.5
"""How often a trainer that waits looks whether sampling still goes on."""
STOP_SECONDS = 10.0
"""Most that environments may take to be closed when a run stops."""


class SamplingSide(Protocol):
    """Engines and players, wherever they are."""

    def update_weights(self, version: int, buckets: Publication) -> str:
        """Replace the weights of all engines while they sample; gives the checksum of what they hold."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens sampled so far."""
        ...

    @property
    def needs_weights(self) -> bool:
        """Whether an engine has come that has none."""
        ...

    def utilisation(self, window: Window, slots: int) -> dict[str, float]:
        """How busy engines and environments were, each in [0, 1]."""
        ...

    def figures(self) -> dict[str, float]:
        """What else to log."""
        ...

    def close(self) -> None:
        """Give up engines and players."""
        ...


class AsynchronousSource:
    """Gives the trainer what is complete in the buffer, and the samplers the trainer's weights.

    Args:
        config: Of the stage.
        model: The policy.
        scheduler: Plays rollouts in `thread`.
        thread: The samplers' event loop; the source closes it.
        sampling: Takes weights; the source closes it.
        sync: Brings weights there.
        record: Where the batches go, and come from again after a kill; None for no record.
        timeline: Of everything that works.
    """

    def __init__(
        self,
        config: RLConfig,
        model: Glm,
        scheduler: RolloutScheduler,
        thread: LoopThread,
        sampling: SamplingSide,
        sync: WeightSync,
        record: BatchRecord | None,
        timeline: Timeline,
    ) -> None:
        self.config = config
        self.model = model
        self.scheduler = scheduler
        self.buffer: TrajectoryBuffer = scheduler.buffer
        self.thread = thread
        self.sampling = sampling
        self.sync = sync
        self.record = record
        self.timeline = timeline
        self._training: Any = None
        self._num_tokens = 0

    def start(self, version: int, state: dict[str, Any]) -> None:
        """Bring the engines the weights of `version` and begin to sample.

        Args:
            version: Of the model now.
            state: `state_dict` of the checkpoint that holds it; empty for none.
        """
        self.sync.push(self.model, version)
        self.scheduler.resume(state)
        self.scheduler.set_version(version)
        self.thread.run(self.scheduler.start())

    def batch(self, step: int, version: int) -> Batch:
        """See `BatchSource.batch`."""
        again = self._take_again(step, version)
        if again is None:
            lease = self._take(version, None)
            samples, dropped = lease.samples(), self.scheduler.take_dropped()
            groups = rewards_by_group(samples) | {group.group_id: (group.task, group.rewards) for group in dropped}
            sampled = [groups[group_id] for group_id in sorted(groups)]
        else:
            lease, sampled = again
            samples = lease.samples()
        self.thread.call(self.scheduler.batch_taken)
        if self.record is not None:
            self.record.write(step, lease.group_ids, samples, sampled)
        self._training = self.timeline.busy(TRAINER, f"step {step}")
        self._training.__enter__()
        return Batch(samples, sampled, lease, self._buffer_figures())

    def updated(self, step: int, version: int) -> dict[str, Any]:
        """See `BatchSource.updated`: the engines get the weights at once and go on with them."""
        del step
        synced = self.sync.push(self.model, version)
        self._training.__exit__(None, None, None)
        self.thread.call(self.scheduler.set_version, version)
        window = self.timeline.cut()
        tokens, self._num_tokens = self.sampling.num_tokens - self._num_tokens, self.sampling.num_tokens
        return synced.figures() | {
            "engine_tokens_per_s": tokens / (window.window[1] - window.window[0]),
            "trainer_utilisation": window.utilisation(TRAINER),
            **self.sampling.utilisation(window, self.scheduler.slots),
            **self.sampling.figures(),
        }

    def state_dict(self) -> dict[str, Any]:
        """See `BatchSource.state_dict`; the tasks, and what the scheduler has made of them, are of one moment."""

        async def states() -> dict[str, Any]:
            return {"course": self.scheduler.course.state_dict(), "scheduler": self.scheduler.state_dict()}

        return self.thread.run(states(), timeout=self.config.sync_timeout_s)

    def close(self) -> None:
        """Stop sampling. Rollouts that run stay in the buffer as running."""
        with contextlib.suppress(TimeoutError):  # an environment that blocks the loop is left behind
            self.thread.run(self.scheduler.stop(), timeout=STOP_SECONDS)
        self.sampling.close()
        self.thread.close()

    def _take(self, version: int, group_ids: list[int] | None) -> Lease:
        while True:
            if self.scheduler.error is not None:
                raise self.scheduler.error
            if self.sampling.needs_weights:
                self.sync.push(self.model, version)
            try:
                return self.buffer.take(self.config.groups_per_step, version, timeout=POLL_SECONDS, group_ids=group_ids)
            except NotReadyError:
                continue

    def _take_again(self, step: int, version: int) -> tuple[Lease, list[TaskRewards]] | None:
        """The batch that the step had before the run was killed, and what was sampled for it, if it is all there."""
        recorded = None if self.record is None else self.record.read(step)
        if recorded is None:
            return None
        ready = {group.group_id for group in self.buffer.groups() if group.state == "ready"}
        if not ready >= set(recorded.group_ids):
            return None
        return self._take(version, recorded.group_ids), recorded.sampled

    def _buffer_figures(self) -> dict[str, Any]:
        stats = self.buffer.stats()
        return {
            "buffer_ready_groups": stats["ready_groups"],
            "buffer_running_groups": stats["running_groups"],
            "buffer_rollouts": stats["rollouts"],
            "playing": self.scheduler.num_playing,
            "max_staleness_seen": stats["max_staleness_seen"],
        }
