"""Between the passes: which documents stay, decided over all parts in their order, whatever worker read them."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glmcore.data.cleaning import exact_duplicates, near_duplicates, semantic_duplicates
from glmcore.data.config import BucketConfig, SemanticConfig
from glmcore.data.parts import Part, WorkPlace, digest
from glmcore.data.quality import quantile_thresholds
from glmcore.durable import private_file
from glmcore.errors import DataError

KEPT, EXACT_DUPLICATE, NEAR_DUPLICATE, BEYOND_LIMIT, SEMANTIC_DUPLICATE = range(5)
NAMES = ("kept", "exact_duplicate", "near_duplicate", "beyond_max_documents", "semantic_duplicate")
"""Verdicts by number."""
NUM_PERMUTATIONS = 128
Verdicts = npt.NDArray[np.uint8]


def decide(parts: Sequence[Part], records: Sequence[dict[str, Any]], place: WorkPlace, num_threads: int) -> list[str]:
    """Write a verdict for every document of every part; gives a key for each part that changes when its verdicts do.

    Of documents with one text the first in order stays, of near copies the one of the highest quality, the first among
    equals. Memory for each document of a source that drops copies: some 50 bytes, and some 60 where near copies are
    looked for; their signatures, 512 bytes each, are in a file. Of copies in meaning the one of the highest quality
    stays, the first among equals; their embeddings are in memory, two or three times.

    Raises:
        DataError: An encoder has given vectors of different lengths.
    """
    sizes = [int(record["documents"]) for record in records]
    verdicts = [np.zeros(size, np.uint8) for size in sizes]
    dropping = [i for i, part in enumerate(parts) if part.source.cleaning.exact_duplicates == "drop"]
    if dropping:
        hashes = np.concatenate([_rows(place, parts[i], "hashes", np.uint64, 2) for i in dropping])
        _mark(verdicts, dropping, ~exact_duplicates(hashes).keep, EXACT_DUPLICATE)
    for threshold in sorted({part.source.cleaning.near_duplicates or 0.0 for part in parts} - {0.0}):
        alike = [i for i, part in enumerate(parts) if part.source.cleaning.near_duplicates == threshold]
        _drop_near(parts, alike, verdicts, place, threshold, num_threads)
    semantic = [rule for part in parts if (rule := part.source.cleaning.semantic_duplicates) is not None]
    for rule in {rule.model_dump_json(): rule for rule in semantic}.values():
        alike = [i for i, part in enumerate(parts) if part.source.cleaning.semantic_duplicates == rule]
        _drop_semantic(parts, alike, verdicts, place, rule)
    _limit(parts, verdicts)
    return [
        _write(place.state(part.name, "verdicts.npy"), verdict) for part, verdict in zip(parts, verdicts, strict=True)
    ]


def buckets_by_source(parts: Sequence[Part], place: WorkPlace) -> dict[str, tuple[BucketConfig, ...]]:
    """The buckets of each source, those by quantile with the quality at which they begin.

    It follows from the documents that `decide` has let stay: 8 bytes each are in memory, of one source at a time.
    """
    buckets: dict[str, tuple[BucketConfig, ...]] = {}
    for source in {part.source.name: part.source for part in parts}.values():
        buckets[source.name] = tuple(source.buckets)
        if not source.by_quantile:
            continue
        scores = np.concatenate([_staying_qualities(place, part) for part in parts if part.source.name == source.name])
        if len(scores):
            shares = [bucket.min_quantile or 0.0 for bucket in source.buckets]
            starts = quantile_thresholds(scores, shares)
            pairs = zip(source.buckets, starts, strict=True)
            buckets[source.name] = tuple(bucket.model_copy(update={"min_quality": start}) for bucket, start in pairs)
    return buckets


def _staying_qualities(place: WorkPlace, part: Part) -> npt.NDArray[np.float64]:
    stay = np.load(place.state(part.name, "verdicts.npy")) == KEPT
    return _rows(place, part, "qualities", np.float64, 1)[stay, 0]


def _rows(place: WorkPlace, part: Part, name: str, dtype: Any, width: int) -> npt.NDArray[Any]:
    return np.fromfile(place.state(part.name, name), dtype).reshape(-1, width)


def _mark(verdicts: list[Verdicts], positions: Sequence[int], chosen: npt.NDArray[np.bool_], verdict: int) -> None:
    """Put a verdict on the documents of some parts, one after the other, that are chosen and have none."""
    end = 0
    for i in positions:
        own = chosen[end : end + len(verdicts[i])]
        verdicts[i][own & (verdicts[i] == KEPT)] = verdict
        end += len(own)


def _drop_near(
    parts: Sequence[Part],
    positions: Sequence[int],
    verdicts: list[Verdicts],
    place: WorkPlace,
    threshold: float,
    num_threads: int,
) -> None:
    """Compare the documents that are still in."""
    kept = np.concatenate([verdicts[i] == KEPT for i in positions])
    qualities = np.concatenate([_rows(place, parts[i], "qualities", np.float64, 1)[:, 0] for i in positions])
    with _signatures(parts, positions, verdicts, place) as signatures:
        found = near_duplicates(signatures, threshold, quality=qualities[kept], num_threads=num_threads)
    dropped = np.zeros(len(kept), np.bool_)
    dropped[kept] = ~found.keep
    _mark(verdicts, positions, dropped, NEAR_DUPLICATE)


def _drop_semantic(
    parts: Sequence[Part], positions: Sequence[int], verdicts: list[Verdicts], place: WorkPlace, rule: SemanticConfig
) -> None:
    """Compare the meaning of the documents that are still in."""
    rows: list[npt.NDArray[np.float32]] = []
    for i in positions:
        if len(verdicts[i]):
            width = place.state(parts[i].name, "embeddings").stat().st_size // (4 * len(verdicts[i]))
            stay = verdicts[i] == KEPT
            rows.append(_rows(place, parts[i], "embeddings", np.float32, width)[stay])
    if len({part.shape[1] for part in rows}) > 1:
        raise DataError(f"encoder {rule.encoder} gave vectors of different lengths")
    if not rows:
        return
    embeddings = np.concatenate(rows)
    kept = np.concatenate([verdicts[i] == KEPT for i in positions])
    qualities = np.concatenate([_rows(place, parts[i], "qualities", np.float64, 1)[:, 0] for i in positions])[kept]
    clusters = rule.num_clusters or max(1, math.isqrt(len(embeddings)))
    found = semantic_duplicates(embeddings, clusters, rule.threshold, quality=qualities)
    dropped = np.zeros(len(kept), np.bool_)
    dropped[kept] = ~found.keep
    _mark(verdicts, positions, dropped, SEMANTIC_DUPLICATE)


@contextmanager
def _signatures(
    parts: Sequence[Part], positions: Sequence[int], verdicts: list[Verdicts], place: WorkPlace
) -> Iterator[npt.NDArray[np.uint32]]:
    """The signatures of documents that are still in, one after the other in a mapped file."""
    path = place.state(".signatures", "tmp")
    try:
        with path.open("wb") as output:
            for i in positions:
                stay = verdicts[i] == KEPT
                rows = np.memmap(place.state(parts[i].name, "signatures"), np.uint32) if len(stay) else np.zeros(0)
                output.write(rows.reshape(-1, NUM_PERMUTATIONS)[stay].tobytes())
        count = path.stat().st_size // (4 * NUM_PERMUTATIONS)
        empty = np.zeros((0, NUM_PERMUTATIONS), np.uint32)
        yield np.memmap(path, np.uint32, shape=(count, NUM_PERMUTATIONS), mode="r") if count else empty
    finally:
        path.unlink(missing_ok=True)


def _limit(parts: Sequence[Part], verdicts: list[Verdicts]) -> None:
    """Keep the first `max_documents` of each source among those that no other verdict drops."""
    taken: dict[str, int] = {}
    for part, verdict in zip(parts, verdicts, strict=True):
        limit = part.source.max_documents
        if limit is None:
            continue
        kept = np.flatnonzero(verdict == KEPT)
        room = max(limit - taken.get(part.source.name, 0), 0)
        verdict[kept[room:]] = BEYOND_LIMIT
        taken[part.source.name] = taken.get(part.source.name, 0) + min(len(kept), room)


def _write(path: Path, verdict: Verdicts) -> str:
    with private_file(path) as temporary, temporary.open("wb") as output:
        np.save(output, verdict)
    return digest(verdict.tobytes().hex())
