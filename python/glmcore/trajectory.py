"""The durable buffer between sampling and training: every group from admission to consumption."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from glmcore._core import CoreTrajectoryBuffer
from glmcore.errors import TrajectoryError

GroupState = Literal["running", "ready", "leased"]


@dataclass(frozen=True)
class Sample:
    """One rollout to train on. Arrays have an entry for each token."""

    group_id: int
    rollout_id: int
    task: str
    ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.uint8]
    """1 where the policy sampled the token."""
    logprobs: npt.NDArray[np.float32]
    """Log-probability of each token when it was sampled."""
    policy_versions: npt.NDArray[np.int32]
    """Version of the weights that each token came from."""
    reward: float
    finish_reason: str | None
    failed: str | None
    """Why the rollout could not be brought to an end, if so."""


@dataclass(frozen=True)
class GroupInfo:
    """A line about a group that has not been consumed."""

    group_id: int
    policy_version: int
    num_rollouts: int
    num_done: int
    state: GroupState
    task: str


class Lease:
    """Groups handed to the trainer. They come again after a restart unless they are acknowledged."""

    def __init__(self, core: CoreTrajectoryBuffer, samples: list[Sample]) -> None:
        self._core = core
        self._samples = samples

    @property
    def group_ids(self) -> list[int]:
        """Numbers of the leased groups, in the order of admission."""
        return list(dict.fromkeys(sample.group_id for sample in self._samples))

    def samples(self) -> list[Sample]:
        """All rollouts of the leased groups."""
        return self._samples

    def ack(self) -> None:
        """Make their consumption durable.

        Raises:
            TrajectoryError: They have been acknowledged or released.
        """
        self._core.ack(self.group_ids)

    def release(self) -> None:
        """Give them back, to be taken again.

        Raises:
            TrajectoryError: They have been acknowledged or released.
        """
        self._core.release(self.group_ids)


class TrajectoryBuffer:
    """Owns every group of rollouts from admission to acknowledged consumption. Threads may share it.

    The staleness of a token is the version that trains on it minus the version that sampled it. Groups are consumed in
    the order of admission, so the version at which a group is trained is known when it is admitted; a group that would
    exceed `max_staleness` by then is refused.
    """

    def __init__(self, core: CoreTrajectoryBuffer) -> None:
        self._core = core

    @classmethod
    def open(cls, directory: str, *, capacity: int, max_staleness: int, groups_per_step: int = 1) -> Self:
        """Open the buffer in a directory, or a new one in memory for `:memory:`.

        Args:
            directory: Made if it is not there; one process at a time.
            capacity: Most rollouts that wait or are leased.
            max_staleness: Most versions between sampling a token and training on it; 0 is synchronous.
            groups_per_step: Groups that the trainer takes for each version.

        Raises:
            TrajectoryError: Another process has the directory, or its log is damaged.
        """
        place = None if directory == ":memory:" else directory
        return cls(CoreTrajectoryBuffer(place, capacity, max_staleness, groups_per_step))

    def admit(self, task: str, num_rollouts: int, policy_version: int) -> int:
        """Make a group of attempts at `task`, sampled from weights of `policy_version` or later; gives its number.

        Raises:
            TrajectoryError: The group could grow too old, or the buffer is full.
        """
        return self._core.admit(task, num_rollouts, policy_version)

    def rollouts(self, group_id: int) -> list[int]:
        """Numbers of a group's rollouts."""
        return self._core.rollouts(group_id)

    def append_tokens(
        self,
        rollout_id: int,
        ids: Sequence[int] | npt.NDArray[np.int32],
        loss_mask: Sequence[int] | npt.NDArray[np.uint8],
        logprobs: Sequence[float] | npt.NDArray[np.float32],
        policy_version: int,
    ) -> None:
        """Add tokens to a running rollout; they are durable once it ends.

        Args:
            rollout_id: Of `rollouts`.
            ids: Token ids, int32 [n].
            loss_mask: 1 for tokens that the policy sampled, [n].
            logprobs: Log-probability of each when sampled, float32 [n]; 0 for given tokens.
            policy_version: Version of the weights; never below an earlier call's.

        Raises:
            TrajectoryError: Lengths differ, the version goes back, or the rollout has ended.
        """
        self._core.append_tokens(
            rollout_id,
            np.ascontiguousarray(ids, np.int32),
            np.ascontiguousarray(loss_mask, np.uint8),
            np.ascontiguousarray(logprobs, np.float32),
            policy_version,
        )

    def finish(self, rollout_id: int, reward: float, finish_reason: str = "stop") -> None:
        """End a rollout with a finite reward; it is durable when this returns."""
        self._core.finish(rollout_id, reward, finish_reason)

    def fail(self, rollout_id: int, reason: str) -> None:
        """End a rollout that cannot go on; the trainer sees the reason."""
        self._core.fail(rollout_id, reason)

    def discard(self, group_id: int) -> None:
        """Forget a group that is not leased."""
        self._core.discard(group_id)

    def take(self, num_groups: int, policy_version: int, timeout: float | None = None) -> Lease:
        """Lease the oldest groups for training at `policy_version`, waiting until all their rollouts have ended.

        Args:
            num_groups: At least `groups_per_step`.
            policy_version: Version that trains on them.
            timeout: Seconds to wait; None for as long as it takes.

        Raises:
            TrajectoryError: They were not complete in time, or are too old.
        """
        rows = self._core.take(num_groups, policy_version, timeout)
        if rows is None:
            waiting = [group for group in self.groups() if group.state != "leased"][:num_groups]
            running = sum(group.num_rollouts - group.num_done for group in waiting)
            raise TrajectoryError(
                f"{num_groups} complete groups were not there after {timeout} s: "
                f"{len(waiting)} are admitted, {running} of their rollouts still run"
            )
        return Lease(self._core, [Sample(*row) for row in rows])

    def groups(self) -> list[GroupInfo]:
        """Groups that have not been consumed, in the order of admission."""
        return [GroupInfo(*line[:4], cast("GroupState", line[4]), line[5]) for line in self._core.groups()]

    def stats(self) -> dict[str, int]:
        """Counts: groups by state, rollouts, tokens, consumed groups, failed rollouts, staleness, bytes on disk."""
        return dict(self._core.stats())

    def close(self) -> None:
        """Let the directory go. Further calls are errors."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
