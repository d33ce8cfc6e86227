"""What can be said of a model, and of two, from scores of a sample of problems.

Problems are the units: answers to one problem are alike, so intervals take problems, with all their answers, as drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glmcore.rl.evaluate import RewardEstimate

RESAMPLES = 10_000
_CHUNK = 1 << 22
"""Numbers drawn at a time."""
Floats = npt.NDArray[np.float64]


def estimate(scores: Floats) -> RewardEstimate:
    """Mean of scores [problems, samples] with its 95% interval.

    Wilson's where there is one right or wrong answer to each problem, and where all problems have the same mean, which
    a bootstrap would call certain; else the percentile bootstrap over problems.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    means = scores.mean(1)
    if (scores.shape[1] == 1 and np.isin(scores, (0.0, 1.0)).all()) or np.ptp(means) == 0:
        return RewardEstimate.from_rewards(means.tolist())
    low, high = _percentiles(bootstrap_means(means))
    mean = float(means.mean())
    return RewardEstimate(mean, min(low, mean), max(high, mean), len(means))


def bootstrap_means(values: Floats, seed: int = 0) -> Floats:
    """Means of samples drawn with replacement from `values` [n], float64 [RESAMPLES]."""
    n = len(values)
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    parts = [
        values[generator.integers(0, n, (min(step, RESAMPLES - start), n))].mean(1)
        for start in range(0, RESAMPLES, step)
    ]
    return np.concatenate(parts)


def _percentiles(means: Floats) -> tuple[float, float]:
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """Model B against model A on the same problems."""

    num_problems: int
    wins: int
    """Problems on which B has the higher mean score."""
    ties: int
    losses: int
    mean_a: float
    mean_b: float
    difference: float
    """Mean of B's score minus A's."""
    low: float
    high: float
    """95% interval of the difference: percentile bootstrap over problems."""
    p_sign: float
    """Two-sided p-value of the exact sign test of wins against losses; for one right or wrong answer to each problem
    this is McNemar's exact test."""
    p_bootstrap: float
    """Two-sided p-value of the difference by the paired bootstrap, at least 1 / (RESAMPLES + 1)."""


def compare_paired(a: Floats, b: Floats) -> Paired:
    """Compare mean scores [problems] of two models, problem by problem."""
    difference = b - a
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    means = bootstrap_means(difference)
    low, high = _percentiles(means)
    mean = float(difference.mean())
    extreme = int((np.abs(means - mean) >= abs(mean) - 1e-12).sum())  # as if there were no difference
    return Paired(
        num_problems=len(a),
        wins=wins,
        ties=len(a) - wins - losses,
        losses=losses,
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=mean,
        low=min(low, mean),
        high=max(high, mean),
        p_sign=sign_test(wins, losses),
        p_bootstrap=(extreme + 1) / (RESAMPLES + 1),
    )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value of so uneven wins and losses if both were as likely; ties say nothing.

    Source: Dixon and Mood, J. Am. Stat. Assoc. 41 (1946), 557; for paired right and wrong answers McNemar,
    Psychometrika 12 (1947), 153, with the exact binomial distribution.
    """
    n, least = wins + losses, min(wins, losses)
    tail = sum(math.comb(n, k) for k in range(least + 1))
    return min(1.0, 2 * tail / 2**n)


def mean_scores(scores: Sequence[Sequence[float]]) -> Floats:
    """Mean of each problem's scores."""
    return np.array([math.fsum(each) / len(each) for each in scores])
