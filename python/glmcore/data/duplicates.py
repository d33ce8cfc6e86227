"""Copies of texts: which text is kept in the place of which."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glmcore.errors import DataError


@dataclass(frozen=True)
class Duplicates:
    """Clusters of copies."""

    kept_in_place_of: npt.NDArray[np.int64]
    """Number of the text that is kept in the place of each, int64 [texts]: its own if it is kept."""

    @property
    def keep(self) -> npt.NDArray[np.bool_]:
        """Whether each text is kept, [texts]."""
        return self.kept_in_place_of == np.arange(len(self.kept_in_place_of))

    @property
    def cluster_sizes(self) -> npt.NDArray[np.int64]:
        """Number of texts of the cluster that each text belongs to, itself counted, [texts]."""
        counts = np.bincount(self.kept_in_place_of, minlength=len(self.kept_in_place_of))
        return counts[self.kept_in_place_of]


def exact_duplicates(
    hashes: npt.NDArray[np.uint64], *, quality: npt.ArrayLike | None = None, ids: npt.ArrayLike | None = None
) -> Duplicates:
    """Clusters of texts with equal hashes; the best by quality is kept, the first (by id) among equals.

    Args:
        hashes: What `exact_hashes` gave, uint64 [texts, 2].
        quality: Finite numbers, [texts].
        ids: Different numbers, [texts]; they take the place of the order of the texts.

    Raises:
        DataError: Arrays do not pair up.
    """
    if hashes.ndim != 2 or hashes.shape[1] != 2:
        raise DataError(f"hashes must have the shape [texts, 2], got {list(hashes.shape)}")
    count = len(hashes)
    rank = np.zeros(count) if quality is None else -np.asarray(quality, np.float64)
    order = np.arange(count, dtype=np.uint64) if ids is None else np.asarray(ids, np.uint64)
    for name, array in (("quality", rank), ("ids", order)):
        if array.shape != (count,):
            raise DataError(f"{name} has the shape {list(array.shape)}, [{count}] is needed")
    by_hash = np.lexsort((order, rank, hashes[:, 1], hashes[:, 0]))
    ordered = hashes[by_hash]
    first = np.ones(count, np.bool_)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    kept = np.empty(count, np.int64)
    kept[by_hash] = by_hash[np.maximum.accumulate(np.where(first, np.arange(count), 0))]
    return Duplicates(kept)
