"""Dynamic sampling beside the trainer: a group of equal rewards is dropped as it ends, and another takes its place.

Source of the idea: DAPO (arXiv:2503.14476), section 3.2. What is dropped frees its place in the buffer's schedule at
once, so the next group has all the time that staleness leaves; nothing is dropped for its age, and fast tasks are not
preferred. The rewards of dropped groups are kept for the statistics of the step that trains next.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from glmcore.rl.curriculum.sampling import teaches
from glmcore.trajectory import TrajectoryBuffer, WholeRollout

if TYPE_CHECKING:
    from glmcore._core import CoreTrajectoryBuffer


class Dropped(NamedTuple):
    """A group that is not trained on."""

    group_id: int
    task: str
    rewards: list[float]
    """Of its rollouts that did not fail."""


@dataclass
class _Open:
    """A group of which rollouts run."""

    task: str
    num_running: int
    rewards: list[float] = field(default_factory=list[float])


class SiftingBuffer(TrajectoryBuffer):
    """The samplers' door to a buffer, where groups of equal rewards end. The trainer uses the buffer itself.

    Args:
        core: Of the buffer.
        most: Groups that may be dropped for each step; those beyond are trained on, to no effect.
    """

    def __init__(self, core: "CoreTrajectoryBuffer", most: int) -> None:
        super().__init__(core)
        self.most = most
        self._lock = threading.Lock()
        self._open: dict[int, _Open] = {}
        self._group_of: dict[int, int] = {}
        self._dropped: list[Dropped] = []

    @classmethod
    def of(cls, buffer: TrajectoryBuffer, most: int) -> "SiftingBuffer":
        """The door to a buffer."""
        return cls(buffer._core, most)  # pyright: ignore[reportPrivateUsage]: a subclass

    def follow(self, group_id: int, task: str, ended: Sequence[float] = (), num_failed: int = 0) -> None:
        """Sift a group from now on.

        Args:
            group_id: Admitted just now, or left by an earlier process.
            task: Its task.
            ended: Rewards of rollouts that have ended well.
            num_failed: Of rollouts that have failed.
        """
        rollouts = self.rollouts(group_id)
        self._open[group_id] = _Open(task, len(rollouts) - len(ended) - num_failed, list(ended))
        self._group_of |= dict.fromkeys(rollouts, group_id)

    def follow_left(self) -> None:
        """Sift the groups that an earlier process has left."""
        running = {line.rollout_id for line in self.running()}
        for group in self.groups():
            if group.state == "running":
                ended = [self.partial(rollout) for rollout in self.rollouts(group.group_id) if rollout not in running]
                rewards = [sample.reward for sample in ended if sample.failed is None]
                self.follow(group.group_id, group.task, rewards, len(ended) - len(rewards))

    def take_dropped(self) -> list[Dropped]:
        """What was dropped since the last call; as many more may be dropped then."""
        with self._lock:
            dropped, self._dropped = self._dropped, []
        return dropped

    def write(self, rollouts: Sequence[WholeRollout]) -> None:
        """See `TrajectoryBuffer.write`."""
        super().write([each for each in rollouts if not self._ends_in_vain(each.rollout_id, each.reward)])

    def finish(
        self, rollout_id: int, reward: float, finish_reason: str = "stop", *, extra: bytes = b"", sync: bool = True
    ) -> None:
        """See `TrajectoryBuffer.finish`."""
        if not self._ends_in_vain(rollout_id, reward):
            super().finish(rollout_id, reward, finish_reason, extra=extra, sync=sync)

    def fail(self, rollout_id: int, reason: str, *, sync: bool = True) -> None:
        """See `TrajectoryBuffer.fail`."""
        if not self._ends_in_vain(rollout_id, None):
            super().fail(rollout_id, reason, sync=sync)

    def _ends_in_vain(self, rollout_id: int, reward: float | None) -> bool:
        """Take note of an end; if it is the last of a group of equal rewards, drop the group.

        Before the buffer hears of the end, for after it the trainer may have taken the group.
        """
        group_id = self._group_of.pop(rollout_id, None)
        if group_id is None:
            return False
        group = self._open[group_id]
        group.num_running -= 1
        if reward is not None:
            group.rewards.append(reward)
        if group.num_running:
            return False
        del self._open[group_id]
        with self._lock:
            if teaches(group.rewards) or len(self._dropped) >= self.most:
                return False
            self._dropped.append(Dropped(group_id, group.task, group.rewards))
        self.discard(group_id)
        return True
