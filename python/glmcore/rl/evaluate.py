"""Mean reward on held-out problems, with its interval."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from glmcore.data.reasoning import Problem
from glmcore.progress import progress
from glmcore.rl.rollout import Rollout, RolloutWorker
from glmcore.rl.seeds import seed_of
from glmcore.trajectory_records import TaskStats

Z95 = 1.959964
"""Standard normal quantile of a two-sided 95% interval."""


@dataclass(frozen=True)
class RewardEstimate:
    """A mean reward with its 95% interval."""

    mean: float
    low: float
    high: float
    n: int
    """Problems, each answered once."""

    @classmethod
    def from_rewards(cls, rewards: Sequence[float]) -> "RewardEstimate":
        """Wilson score interval of the mean of `rewards`, each in [0, 1].

        For rewards that are not 0 or 1 the interval is conservative: no variable in [0, 1] with that mean varies more.
        Source: Wilson, J. Am. Stat. Assoc. 22 (1927), 209.
        """
        n = len(rewards)
        mean = math.fsum(rewards) / n
        centre = mean + Z95**2 / (2 * n)
        half = Z95 * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n * n))
        scale = 1 + Z95**2 / n
        low, high = (centre - half) / scale, (centre + half) / scale
        return cls(mean, min(mean, max(0.0, low)), max(mean, min(1.0, high)), n)  # rounding must not pass the mean

    def to_dict(self) -> dict[str, float | int]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.mean:.3f} (95% interval {self.low:.3f} to {self.high:.3f}, n = {self.n})"


def pass_at_powers(passes: Sequence[int], samples: int) -> dict[int, list[float]]:
    """Unbiased pass@k of each task, for k = 1, 2, 4, ... and the number of samples; see `TaskStats.pass_at`.

    Args:
        passes: Answers to each task that passed.
        samples: Answers to each task.
    """
    ks = sorted({2**power for power in range(samples.bit_length())} | {samples})
    found = {k: [TaskStats(samples, int(count), 0, 0.0).pass_at(k) for count in passes] for k in ks}
    return {k: [value for value in values if value is not None] for k, values in found.items()}


def evaluate(
    worker: RolloutWorker, problems: Sequence[Problem], seed: int, title: str
) -> tuple[RewardEstimate, list[Rollout]]:
    """Answer every problem once; the same seed draws the same random numbers for every model."""
    seeds = [seed_of(seed, index) for index in range(len(problems))]
    with progress(title, total=len(problems), unit="problems") as bar:
        rollouts: list[Rollout] = []
        size = worker.max_sequences
        for start in range(0, len(problems), size):
            rollouts += worker.roll_out(problems[start : start + size], seeds[start : start + size])
            bar.advance(min(size, len(problems) - start))
    return RewardEstimate.from_rewards([rollout.reward for rollout in rollouts]), rollouts
