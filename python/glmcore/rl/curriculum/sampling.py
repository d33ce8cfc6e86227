"""Dynamic sampling: groups of equal rewards teach nothing, so further ones are sampled in their place."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from glmcore.rl.advantage import MIN_DEVIATION
from glmcore.rl.curriculum.config import DynamicSamplingConfig


def teaches(rewards: Sequence[float]) -> bool:
    """Whether the rewards of a group differ, so that some attempts are better than others."""
    return float(np.std(np.asarray(rewards, np.float64))) > MIN_DEVIATION


class GroupQuota:
    """How many groups to sample for one step, round by round, until enough of them teach.

    Args:
        target: Groups of the step's update.
        share: Expected share of groups that teach, in (0, 1].
        most: Groups that may be sampled in all.
    """

    def __init__(self, target: int, share: float, most: int) -> None:
        self.target = target
        self.share = share
        self.most = most
        self.sampled = 0
        self.kept = 0

    def wanted(self) -> int:
        """Groups to sample in the next round; 0 when there are enough, or no more may be sampled."""
        missing = self.target - self.kept
        if missing <= 0:
            return 0
        return min(math.ceil(missing / self.share), self.most - self.sampled)

    def offer(self, rewards: Sequence[float]) -> bool:
        """Count a finished group; True if it is to be trained on."""
        self.sampled += 1
        keep = self.kept < self.target and teaches(rewards)
        self.kept += keep
        return keep


class DynamicSampling:
    """Plans the over-sampling of each step from the share of groups that taught in earlier ones."""

    def __init__(self, config: DynamicSamplingConfig | None, groups_per_step: int) -> None:
        self.config = config
        self.groups_per_step = groups_per_step
        self.share = 1.0
        """Running mean of the share of groups that teach."""

    def quota(self) -> GroupQuota:
        """The quota of the next step."""
        assert self.config is not None, "groups of every kind are trained on"
        most = math.ceil(self.config.max_factor * self.groups_per_step)
        return GroupQuota(self.groups_per_step, max(self.share, self.groups_per_step / most), most)

    def finish_step(self, groups: Sequence[Sequence[float]]) -> None:
        """Take note of the rewards of all groups that were sampled for a step."""
        if self.config is not None and groups:
            share = float(np.mean([teaches(rewards) for rewards in groups]))
            self.share = self.config.smoothing * self.share + (1 - self.config.smoothing) * share

    def state_dict(self) -> dict[str, Any]:
        """The state, plain JSON values."""
        return {"share": self.share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self.share = float(state["share"])
