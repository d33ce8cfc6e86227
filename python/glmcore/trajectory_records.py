"""What the trajectory buffer gives out: samples, and lines about what it holds and has held."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

GroupState = Literal["running", "ready", "leased"]

NO_TURNS: npt.NDArray[np.int32] = np.zeros(1, np.int32)
NO_TURNS.flags.writeable = False


class Sample(NamedTuple):
    """One rollout to train on. Arrays have an entry for each token; those of a lease are read-only and not copied."""

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
    turns: npt.NDArray[np.int32] = NO_TURNS
    """Where turns begin and, last, where the last one ends, int32 [num_turns + 1]."""
    extra: bytes = b""
    """What `finish` was given to keep."""


@dataclass(frozen=True)
class GroupInfo:
    """A line about a group that has not been consumed."""

    group_id: int
    policy_version: int
    due_version: int
    """Last version of the trainer that may take it."""
    num_rollouts: int
    num_done: int
    state: GroupState
    task: str


@dataclass(frozen=True)
class RunningRollout:
    """A line about a rollout that has not ended."""

    rollout_id: int
    group_id: int
    num_tokens: int
    task: str


class WholeRollout(NamedTuple):
    """A rollout for `TrajectoryBuffer.write`."""

    rollout_id: int
    ids: Sequence[int]
    loss_mask: Sequence[int]
    logprobs: Sequence[float]
    spans: Sequence[tuple[int, int, bool]]
    """Tokens, policy version, and whether a turn ends with them."""
    reward: float | None
    """None if it failed."""
    reason: str
    """Of its end, or of its failure."""
    extra: bytes = b""
    """Comes out with the sample."""


@dataclass(frozen=True)
class TaskStats:
    """How often a task was tried and solved."""

    attempts: int
    """Rollouts that finished with a reward."""
    passes: int
    """Those with a reward of `pass_reward` or more."""
    failures: int
    """Rollouts that failed."""
    reward_sum: float

    def pass_at(self, k: int) -> float | None:
        """Probability that one of `k` attempts at least passes, without bias; None if fewer were made.

        Source: Chen et al., arXiv:2107.03374, section 2.1: `1 - C(n - c, k) / C(n, k)`.
        """
        if k > self.attempts:
            return None
        wrong = self.attempts - self.passes
        if wrong < k:
            return 1.0
        return 1.0 - float(np.prod(1.0 - k / np.arange(wrong + 1, self.attempts + 1)))


@dataclass(frozen=True)
class TakenRollout:
    """A consumed rollout, without its tokens."""

    rollout_id: int
    reward: float | None
    failed: str | None
    spans: tuple[tuple[int, int], ...]
    """Runs of tokens of one version: length and version."""


@dataclass(frozen=True)
class TakenGroup:
    """A consumed group."""

    group_id: int
    task: str
    policy_version: int
    rollouts: tuple[TakenRollout, ...]

    @classmethod
    def of(cls, group_id: int, task: str, policy_version: int, rollouts: Iterable[tuple[Any, ...]]) -> Self:
        """From the lines of the core."""
        lines = (TakenRollout(rollout, reward, failed, tuple(spans)) for rollout, reward, failed, spans in rollouts)
        return cls(group_id, task, policy_version, tuple(lines))


@dataclass(frozen=True)
class Taken:
    """A consumed lease."""

    policy_version: int
    checkpoint: str
    """What the acknowledgement named; empty if nothing."""
    groups: tuple[TakenGroup, ...]


class BufferStats(TypedDict):
    """What the buffer holds, and counts over its life."""

    running_groups: int
    ready_groups: int
    leased_groups: int
    rollouts: int
    """Of the groups held."""
    tokens: int
    """Of the groups held."""
    consumed_groups: int
    failed_rollouts: int
    max_staleness_seen: int
    """Largest staleness of a consumed token."""
    bytes_on_disk: int
    commits: int
    """Times that callers waited for the disk since the buffer was opened."""
    staleness: dict[int, int]
    """Consumed tokens that the policy sampled, by their staleness in the last update of their batch."""
