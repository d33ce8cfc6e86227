"""The durable buffer between sampling and training: every group from admission to consumption."""

from collections.abc import Sequence
from types import TracebackType
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from glmcore._core import CoreLease, CoreTrajectoryBuffer
from glmcore.errors import NotReadyError
from glmcore.trajectory_records import (
    BufferStats,
    GroupInfo,
    GroupState,
    RunningRollout,
    Sample,
    Taken,
    TakenGroup,
    TakenRollout,
    TaskStats,
    WholeRollout,
)

__all__ = [
    "BufferStats",
    "GroupInfo",
    "Lease",
    "Order",
    "RunningRollout",
    "Sample",
    "Taken",
    "TakenGroup",
    "TakenRollout",
    "TaskStats",
    "TrajectoryBuffer",
    "WholeRollout",
]

Order = Literal["deadline", "fifo", "priority"]


class Lease:
    """Groups handed to the trainer. They come again after a restart unless they are acknowledged."""

    def __init__(self, buffer: CoreTrajectoryBuffer, core: CoreLease) -> None:
        self._buffer = buffer
        self._core = core

    @property
    def id(self) -> int:
        """Number of the lease."""
        return self._core.id

    @property
    def policy_version(self) -> int:
        """Version of the trainer that took it."""
        return self._core.policy_version

    @property
    def group_ids(self) -> list[int]:
        """Numbers of the leased groups, in the order of admission."""
        return self._core.group_ids

    def samples(self) -> list[Sample]:
        """All rollouts of the leased groups, group by group. Their arrays look at the buffer's memory."""
        return list(map(Sample._make, self._core.samples()))

    def ack(self, checkpoint: str | None = None) -> None:
        """Make their consumption durable, once a checkpoint contains what they were used for.

        Args:
            checkpoint: Its name, for the record of the order; if the lease was prepared, the one it was prepared for.

        Raises:
            TrajectoryError: They have been acknowledged or released, or were prepared for another checkpoint.
        """
        self._buffer.ack([self.id], checkpoint)

    def release(self) -> None:
        """Give them back, to be taken again.

        Raises:
            TrajectoryError: They have been acknowledged or released.
        """
        self._buffer.release([self.id])


class TrajectoryBuffer:
    """Owns every group of rollouts from admission to acknowledged consumption. Threads may share it.

    The staleness of a token is the version that trains on it minus the version that sampled it. A group is admitted
    only if it and all others can be trained before they exceed `max_staleness`, and a batch goes to the trainer only if
    those that it leaves still can; where a slow group cannot wait any longer, `take` waits for it. So nothing is ever
    too old, dropped for its age, or passed over for ever. With `max_staleness=0` this is synchronous training.

    Calls with `sync` return once their record is on disk, which threads wait for together; without, they return at
    once and `flush` waits for all.
    """

    def __init__(self, core: CoreTrajectoryBuffer) -> None:
        self._core = core

    @classmethod
    def open(
        cls,
        directory: str,
        *,
        capacity: int,
        max_staleness: int,
        groups_per_step: int = 1,
        updates_per_step: int = 1,
        order: Order = "deadline",
        capacity_tokens: int | None = None,
        pass_reward: float = 1.0,
        segment_bytes: int = 16 << 20,
    ) -> Self:
        """Open the buffer in a directory, or a new one in memory for `:memory:`.

        Args:
            directory: Made if it is not there; one process at a time.
            capacity: Most rollouts that wait or are leased.
            max_staleness: Most versions between sampling a token and the last optimiser step on it; 0 is synchronous.
            groups_per_step: Groups that the trainer takes for each batch.
            updates_per_step: Optimiser steps on a batch, by which the version then rises.
            order: `deadline` prefers complete groups that will be too old first, `priority` those admitted with the
                highest priority, `fifo` waits for groups as they were admitted.
            capacity_tokens: Most tokens of rollouts that wait or are leased, 13 bytes each; `admit` then needs
                `max_tokens`, so that a rollout never waits for room in the middle.
            pass_reward: A finished rollout passes, in the counts of its task, with this reward or more.
            segment_bytes: Size at which a segment of the log is closed.

        Raises:
            TrajectoryError: A limit makes no sense, another process has the directory, or its log is damaged.
        """
        place = None if directory == ":memory:" else directory
        return cls(
            CoreTrajectoryBuffer(
                place,
                capacity,
                capacity_tokens,
                max_staleness,
                groups_per_step,
                updates_per_step,
                order,
                pass_reward,
                segment_bytes,
            )
        )

    def admit(
        self,
        task: str,
        num_rollouts: int,
        policy_version: int,
        *,
        priority: int = 0,
        max_tokens: int | None = None,
        rollout_timeout: float | None = None,
        timeout: float | None = 0.0,
        sync: bool = True,
    ) -> int:
        """Make a group of attempts at `task`, sampled from weights of `policy_version` or later; gives its number.

        Args:
            task: What `Sample.task` says; statistics are kept by it.
            num_rollouts: Attempts, at least 1.
            policy_version: Of the weights now.
            priority: Higher goes first if the buffer's order is `priority`.
            max_tokens: Most tokens of each rollout.
            rollout_timeout: Seconds after which a rollout that has not ended fails; None for no limit.
            timeout: Seconds to wait for room; 0 to be refused at once, None for as long as it takes.
            sync: Return once the admission is on disk.

        Raises:
            StaleError: It or another group might be trained on too late. Newer weights help, waiting does not.
            BufferFullError: There is no room in time.
            TrajectoryError: Other arguments are wrong, or the log cannot be written.
        """
        return self._core.admit(
            task, num_rollouts, policy_version, priority, max_tokens, rollout_timeout, timeout, sync
        )

    def room(self, policy_version: int) -> int:
        """How many groups of this version `admit` would not refuse with `StaleError`."""
        return self._core.room(policy_version)

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
        *,
        ends_turn: bool = False,
    ) -> None:
        """Add tokens to a running rollout; they are on disk once it has ended, or earlier.

        Args:
            rollout_id: Of `rollouts`.
            ids: Token ids, int32 [n], not negative.
            loss_mask: 1 for tokens that the policy sampled and 0 for others, [n].
            logprobs: Log-probability of each when sampled, finite, float32 [n]; 0 for given tokens.
            policy_version: Version of the weights; never below an earlier call's or the group's.
            ends_turn: A turn ends with them. The last turn ends with the rollout.

        Raises:
            TrajectoryError: Lengths differ, a value is out of range, the version goes back, the rollout has ended or
                would be longer than its group's `max_tokens`.
        """
        self._core.append_tokens(
            rollout_id,
            np.ascontiguousarray(ids, np.int32),
            np.ascontiguousarray(loss_mask, np.uint8),
            np.ascontiguousarray(logprobs, np.float32),
            policy_version,
            ends_turn,
        )

    def write(self, rollouts: Sequence[WholeRollout]) -> None:
        """Write whole rollouts in one call: as `append_tokens` for each span, and `finish` or `fail` without `sync`.

        Raises:
            TrajectoryError: As theirs; the rollouts before the one that is wrong are written.
        """
        ids = np.array([token for rollout in rollouts for token in rollout.ids], np.int32)
        loss_mask = np.array([learned for rollout in rollouts for learned in rollout.loss_mask], np.uint8)
        logprobs = np.array([logprob for rollout in rollouts for logprob in rollout.logprobs], np.float32)
        ends = [(each.rollout_id, each.spans, each.reward, each.reason, each.extra) for each in rollouts]
        self._core.write(ids, loss_mask, logprobs, ends)

    def finish(
        self, rollout_id: int, reward: float, finish_reason: str = "stop", *, extra: bytes = b"", sync: bool = True
    ) -> None:
        """End a rollout with a finite reward.

        Args:
            rollout_id: Of `rollouts`.
            reward: What the trainer gets.
            finish_reason: `stop`, `length`, ...
            extra: Comes out with the sample.
            sync: Return once the whole rollout is on disk.

        Raises:
            TrajectoryError: It has ended, the reward is not finite, or the log cannot be written.
        """
        self._core.finish(rollout_id, reward, finish_reason, extra, sync)

    def fail(self, rollout_id: int, reason: str, *, sync: bool = True) -> None:
        """End a rollout that cannot go on; the trainer sees the reason.

        Raises:
            TrajectoryError: It has ended, or the log cannot be written.
        """
        self._core.fail(rollout_id, reason, sync)

    def restart(self, rollout_id: int) -> None:
        """Drop the tokens of a running rollout, to begin anew.

        Raises:
            TrajectoryError: It has ended.
        """
        self._core.restart(rollout_id)

    def set_timeout(self, rollout_id: int, seconds: float | None) -> None:
        """Let a running rollout fail if it has not ended in `seconds` from now; None lifts its limit.

        Raises:
            TrajectoryError: It has ended.
        """
        self._core.set_timeout(rollout_id, seconds)

    def discard(self, group_id: int) -> None:
        """Forget a group that is not leased; its rollouts stay in the counts of its task."""
        self._core.discard(group_id)

    def take(
        self,
        num_groups: int,
        policy_version: int,
        timeout: float | None = None,
        *,
        group_ids: Sequence[int] | None = None,
    ) -> Lease:
        """Lease groups for training at `policy_version`, waiting until all their rollouts have ended.

        Args:
            num_groups: Of the batch. Fewer than `groups_per_step` is for consumers that share a batch.
            policy_version: Version of the trainer, which does not go back and rises by `updates_per_step`.
            timeout: Seconds to wait; None for as long as it takes.
            group_ids: Exactly these, to repeat an order.

        Raises:
            NotReadyError: They were not complete in time.
            TrajectoryError: Others would get too old, or it is not known yet whether leases of an earlier process were
                consumed.
        """
        wanted = None if group_ids is None else list(group_ids)
        lease = self._core.take(num_groups, policy_version, timeout, wanted)
        if lease is None:
            waiting = [group for group in self.groups() if group.state != "leased"]
            running = sum(group.num_rollouts - group.num_done for group in waiting)
            due = sum(group.state == "running" and group.due_version <= policy_version for group in waiting)
            raise NotReadyError(
                f"{num_groups} complete groups were not there after {timeout} s: {len(waiting)} are admitted, "
                f"{running} of their rollouts still run, {due} running groups are due at version {policy_version}"
            )
        return Lease(self._core, lease)

    def prepare(self, leases: Sequence[Lease], checkpoint: str) -> None:
        """State durably, before a checkpoint is completed, that it contains what `leases` were used for.

        Should the process end between the checkpoint and the acknowledgement, `recover` knows by its name that they
        were consumed.

        Raises:
            TrajectoryError: One has been acknowledged or released.
        """
        self._core.prepare([lease.id for lease in leases], checkpoint)

    def ack(self, leases: Sequence[Lease], checkpoint: str | None = None) -> None:
        """Acknowledge several leases, all of them or, after a crash, none. See `Lease.ack`."""
        self._core.ack([lease.id for lease in leases], checkpoint)

    def recover(self, checkpoint: str | None, policy_version: int | None = None) -> None:
        """The trainer starts again: leases prepared for `checkpoint` are consumed, all others come again.

        Args:
            checkpoint: Name of the one that it goes on from; None for none.
            policy_version: Its version, to be given if the checkpoint is older than what was acknowledged.
        """
        self._core.recover(checkpoint, policy_version)

    def flush(self) -> None:
        """Wait until all that was recorded is on disk.

        Raises:
            TrajectoryError: The log cannot be written.
        """
        self._core.flush()

    def groups(self) -> list[GroupInfo]:
        """Groups that have not been consumed, in the order of admission."""
        return [GroupInfo(*line[:5], cast("GroupState", line[5]), line[6]) for line in self._core.groups()]

    def running(self) -> list[RunningRollout]:
        """Rollouts that have not ended. After a start, sample them further from `partial`, or `restart` them."""
        return [RunningRollout(*line) for line in self._core.running()]

    def partial(self, rollout_id: int) -> Sample:
        """A copy of a rollout as it is now, also while it runs."""
        return Sample._make(self._core.sample(rollout_id))

    def task_stats(self, task: str) -> TaskStats:
        """How often a task was tried and solved, over the life of the directory."""
        return TaskStats(*(self._core.task_stats(task) or (0, 0, 0, 0.0)))

    def tasks(self) -> dict[str, TaskStats]:
        """The same of every task that was tried."""
        return {task: TaskStats(*counts) for task, counts in self._core.tasks()}

    def consumed(self) -> list[Taken]:
        """What was acknowledged, in order, to repeat a run whose timing cannot be repeated.

        Raises:
            TrajectoryError: The buffer is in memory, or the record is damaged.
        """
        return [
            Taken(version, checkpoint, tuple(TakenGroup.of(*group) for group in groups))
            for version, checkpoint, groups in self._core.order()
        ]

    def stats(self) -> BufferStats:
        """What the buffer holds, and counts."""
        counts, staleness = self._core.stats()
        return cast("BufferStats", {**dict(counts), "staleness": dict(staleness)})

    def close(self) -> None:
        """Let the directory go once all is on disk. Further calls are errors.

        Raises:
            TrajectoryError: The log cannot be written.
        """
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
