"""Copies in meaning: SemDeDup over embeddings.

Source: Abbas et al. 2023, arXiv:2303.09540, section 3. Embeddings are clustered, and within a cluster texts whose
embeddings are nearly parallel are copies. The encoder is any function from texts to vectors.
"""

import numpy as np
import numpy.typing as npt

from glmcore.data.duplicates import Duplicates
from glmcore.errors import DataError

_ROWS = 2048
"""Rows of a product of embeddings that are in memory at once."""


def semantic_duplicates(
    embeddings: npt.NDArray[np.floating],
    num_clusters: int,
    threshold: float = 0.95,
    *,
    quality: npt.ArrayLike | None = None,
    seed: int = 0,
    max_iterations: int = 20,
) -> Duplicates:
    """Texts whose embeddings are nearly parallel to that of a text that is kept.

    Spherical k-means puts the texts into clusters. The texts of a cluster are taken by falling quality; without it, as
    in the paper, by rising similarity to the centre, so that of a group of copies the least typical is kept. A text is
    a copy if its cosine with an earlier text that is kept is above `threshold`; the nearest such is kept in its place.
    The seed alone decides: same arguments, same result on one machine. Time grows with `texts^2 / num_clusters`, memory
    beyond the embeddings is 8 KiB per text of the largest cluster and the float32 copy of the embeddings.

    Args:
        embeddings: [texts, dimensions], finite; rows need not have length 1, a row of zeros is no copy.
        num_clusters: At least 1; more clusters are faster and miss copies that fall on two sides of a border.
        threshold: Cosine, from -1 to 1; the paper's `1 - epsilon`.
        quality: Finite numbers, [texts].
        seed: Of the first centres.
        max_iterations: Of k-means; it ends when no text changes its cluster.

    Raises:
        DataError: An argument is wrong.
    """
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f":
        raise DataError(f"embeddings must be a 2-D float array, got {embeddings.ndim}-D {embeddings.dtype}")
    if not np.isfinite(embeddings).all():
        raise DataError("embeddings must be finite")
    if num_clusters < 1 or max_iterations < 1 or not -1 <= threshold <= 1:
        raise DataError("num_clusters and max_iterations must be at least 1 and threshold from -1 to 1")
    count = len(embeddings)
    rank = None if quality is None else np.asarray(quality, np.float64)
    if rank is not None and (rank.shape != (count,) or not np.isfinite(rank).all()):
        raise DataError(f"quality must be {count} finite numbers")
    kept = np.arange(count)
    if count:
        lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
        vectors = np.divide(embeddings, lengths, out=np.zeros(embeddings.shape), where=lengths > 0).astype(np.float32)
        centres, cluster_of = _cluster(vectors, min(num_clusters, count), seed, max_iterations)
        for cluster in range(len(centres)):
            texts = np.flatnonzero(cluster_of == cluster)
            key = vectors[texts] @ centres[cluster] if rank is None else -rank[texts]
            texts = texts[np.argsort(key, kind="stable")]
            kept[texts] = texts[_nearest_kept(vectors[texts], threshold)]
    return Duplicates(kept)


def _cluster(
    vectors: npt.NDArray[np.float32], num_clusters: int, seed: int, max_iterations: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Centres of length 1 and the cluster of each row, by spherical k-means (Dhillon and Modha, 2001)."""
    first = np.random.default_rng(seed).choice(len(vectors), num_clusters, replace=False)
    centres = vectors[np.sort(first)]
    cluster_of = np.full(len(vectors), -1)
    for _ in range(max_iterations):
        before, cluster_of = cluster_of, _nearest(vectors, centres)
        if (before == cluster_of).all():
            break
        sums = np.zeros(centres.shape)
        np.add.at(sums, cluster_of, vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres).astype(
            np.float32
        )  # an empty cluster stays
    return centres, cluster_of


def _nearest(vectors: npt.NDArray[np.float32], centres: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    parts = [vectors[start : start + _ROWS] @ centres.T for start in range(0, len(vectors), _ROWS)]
    return np.concatenate([part.argmax(axis=1) for part in parts])


def _nearest_kept(vectors: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.int64]:
    """For each row the earlier row that is kept and nearest, if nearer than the threshold; else itself."""
    kept = np.arange(len(vectors))
    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS]
        earlier = np.flatnonzero(kept[:start] == np.arange(start))
        if earlier.size:
            cosines = block @ vectors[earlier].T
            best = cosines.argmax(axis=1)
            found = cosines[np.arange(len(block)), best] > threshold
            kept[start : start + len(block)][found] = earlier[best[found]]
        within = block @ block.T
        for row in range(1, len(block)):
            if kept[start + row] != start + row:
                continue
            alone = kept[start : start + row] == np.arange(start, start + row)
            cosine = np.where(alone, within[row, :row], -np.inf)
            best = int(cosine.argmax())
            if cosine[best] > threshold:
                kept[start + row] = start + best
    return kept
