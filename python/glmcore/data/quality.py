"""Quality of texts from their statistics, and how often texts of each quality are seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glmcore.errors import DataError

TOP_EPOCHS = 3.2
"""Times that the best bucket is seen in GLM-4.5's training (arXiv:2508.06471, section 2.2)."""

_GOODNESS: tuple[tuple[str, float, float], ...] = (
    ("punctuated_line_share", 0.12, 0.7),
    ("short_line_share", 0.67, 0.2),
    ("duplicate_line_char_share", 0.1, 0.0),
    ("duplicate_5gram_char_share", 0.15, 0.02),
    ("top_2gram_char_share", 0.2, 0.05),
    ("alphabetic_word_share", 0.8, 0.95),
    ("hash_word_ratio", 0.1, 0.0),
    ("ellipsis_word_ratio", 0.1, 0.0),
    ("num_words", 50.0, 200.0),
)
"""Fields, the value from which on they are bad (a published filter rejects) and the one from which on they are good."""

_WORD_LENGTH = ((3.0, 4.0), (10.0, 7.0))


def quality_scores(statistics: npt.NDArray[np.void]) -> npt.NDArray[np.float64]:
    """A score from 0 to 1 for each text: how far its statistics are from where the published filters reject.

    The geometric mean over ten fields of `clip((value - bad) / (good - bad), 0, 1)`; docs/cleaning.md has the table. A
    text that a filter on one of these fields rejects scores 0. It orders texts of one source and knows nothing of what
    they say: for that, train a `QualityClassifier`.

    Args:
        statistics: What `text_statistics` gave, [texts].
    """
    goodness = [_ramp(statistics[field], bad, good) for field, bad, good in _GOODNESS]
    length = statistics["mean_word_length"]
    of_length = np.minimum(*(_ramp(length, bad, good) for bad, good in _WORD_LENGTH))
    goodness.append(np.where(statistics["unspaced_share"] > 0.5, 1.0, of_length))
    return np.prod(goodness, axis=0) ** (1 / len(goodness))


def _ramp(value: npt.NDArray[np.float64], bad: float, good: float) -> npt.NDArray[np.float64]:
    return np.clip((value - bad) / (good - bad), 0.0, 1.0)


def epochs_of_buckets(
    num_buckets: int, top_epochs: float = TOP_EPOCHS, lowest_epochs: float = 1.0
) -> tuple[float, ...]:
    """Times that texts of each bucket are seen, from the worst, which is dropped, to the best: `top_epochs`.

    From `lowest_epochs` of the lowest bucket that is kept they rise by equal factors. GLM-4.5's report gives the two
    ends (arXiv:2508.06471, section 2.2), not the steps between.

    Raises:
        DataError: There are fewer than two buckets, or the numbers do not rise.
    """
    if num_buckets < 2:
        raise DataError(f"num_buckets is {num_buckets}, it must be at least 2: one is dropped")
    if not 0 < lowest_epochs <= top_epochs < np.inf:
        raise DataError(f"epochs must rise from above 0, got {lowest_epochs} to {top_epochs}")
    if num_buckets == 2:
        return (0.0, float(top_epochs))
    steps = np.linspace(0.0, 1.0, num_buckets - 1)
    return (0.0, *(lowest_epochs * (top_epochs / lowest_epochs) ** steps).tolist())


def quantile_thresholds(
    scores: npt.NDArray[np.float64], shares: npt.ArrayLike, weights: npt.NDArray[np.float64] | None = None
) -> tuple[float, ...]:
    """Scores below which each share of the texts, or of their weights, lies.

    Equal scores stay together: a cut falls where different scores meet, nearest to where it should be.

    Args:
        scores: Finite, [texts], at least one.
        shares: From 0 to 1, any number.
        weights: Not negative, with a sum above 0, [texts].
    """
    levels, group = np.unique(scores, return_inverse=True)
    above = np.concatenate(([0.0], np.cumsum(np.bincount(group, weights))))  # weight below each level, and of all
    cuts = above[-1] * np.asarray(shares, np.float64)
    right = np.searchsorted(above, cuts).clip(1, len(above) - 1)
    nearest = np.where(cuts - above[right - 1] <= above[right] - cuts, right - 1, right)
    starts = np.append(levels, np.nextafter(levels[-1], np.inf))
    return tuple(starts[nearest].tolist())


@dataclass(frozen=True)
class QualityBuckets:
    """Buckets of quality and how often their texts are seen."""

    thresholds: tuple[float, ...]
    """Scores at which the second, third, ... bucket begins, rising."""
    epochs: tuple[float, ...]
    """Times that texts of each bucket are seen, the worst first; 0 drops a bucket."""

    def __post_init__(self) -> None:
        if len(self.epochs) != len(self.thresholds) + 1:
            raise DataError(
                f"{len(self.thresholds)} thresholds make {len(self.thresholds) + 1} buckets, not {len(self.epochs)}"
            )
        if not all(low <= high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise DataError("thresholds must rise")
        if not all(0 <= epochs < np.inf for epochs in self.epochs):
            raise DataError("epochs must be finite and not negative")

    @classmethod
    def fit(
        cls,
        scores: npt.ArrayLike,
        num_buckets: int = 5,
        *,
        weights: npt.ArrayLike | None = None,
        epochs: Sequence[float] | None = None,
    ) -> "QualityBuckets":
        """Buckets that hold equal parts of these texts, or of their weights (such as tokens).

        Equal scores stay together: a cut falls where different scores meet, nearest to where it should be.

        Args:
            scores: Scores of a sample, finite, at least one.
            num_buckets: At least 2.
            weights: Not negative, [texts].
            epochs: Of each bucket; by default `epochs_of_buckets(num_buckets)`.

        Raises:
            DataError: An argument is wrong.
        """
        values = np.asarray(scores, np.float64)
        if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
            raise DataError("scores must be a 1-D array of at least one finite number")
        weight = np.ones(values.shape) if weights is None else np.asarray(weights, np.float64)
        if weight.shape != values.shape or not (weight >= 0).all() or not 0 < weight.sum() < np.inf:
            raise DataError("weights must be one number for each score, not negative, with a sum above 0")
        table = epochs_of_buckets(num_buckets) if epochs is None else tuple(map(float, epochs))
        return cls(quantile_thresholds(values, np.arange(1, num_buckets) / num_buckets, weight), table)

    def of(self, scores: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Bucket of each score, 0 for the worst."""
        return np.searchsorted(np.asarray(self.thresholds), np.asarray(scores, np.float64), side="right")

    def epochs_of(self, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Times that a text of each score is seen: the weight of a mixture."""
        return np.asarray(self.epochs)[self.of(scores)]

    def copies(self, scores: npt.ArrayLike, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Whole number of times that each text is written, whose mean over texts of a bucket is its epochs.

        Args:
            scores: [texts].
            keys: Well-mixed numbers of the texts, such as the first column of `exact_hashes`, [texts]. They decide
                which texts of a bucket get the copy more, so that the order of the texts and other texts do not.
        """
        epochs = self.epochs_of(scores)
        whole = np.floor(epochs)
        uniform = (np.asarray(keys, np.uint64) >> np.uint64(11)).astype(np.float64) / 2.0**53
        return (whole + (uniform < epochs - whole)).astype(np.int64)
