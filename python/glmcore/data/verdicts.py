"""Between the passes: which documents stay, decided over all parts in their order, whatever worker read them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glmcore.data.parts import Part, WorkPlace, digest
from glmcore.durable import private_file

KEPT, EXACT_DUPLICATE, BEYOND_LIMIT = range(3)
NAMES = ("kept", "exact_duplicate", "beyond_max_documents")
"""Verdicts by number."""
Verdicts = npt.NDArray[np.uint8]


def decide(parts: Sequence[Part], records: Sequence[dict], place: WorkPlace) -> list[str]:  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]
    """Write a verdict for every document of every part; gives a key for each part that changes when its verdicts do.

    Of documents with one text the first in order stays. Memory: 24 bytes for each document of sources that drop
    duplicates.
    """
    sizes = [int(record["documents"]) for record in records]
    verdicts = [np.zeros(size, np.uint8) for size in sizes]
    dropping = [i for i, part in enumerate(parts) if part.source.exact_duplicates == "drop"]
    if dropping:
        hashes = np.concatenate([np.load(place.state(parts[i].name, "hashes.npy")) for i in dropping])
        repeated = _repeated(hashes)
        end = 0
        for i in dropping:
            verdicts[i][repeated[end : end + sizes[i]]] = EXACT_DUPLICATE
            end += sizes[i]
    _limit(parts, verdicts)
    return [
        _write(place.state(part.name, "verdicts.npy"), verdict) for part, verdict in zip(parts, verdicts, strict=True)
    ]


def _repeated(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """True for each row that an earlier row equals."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable, so equal rows stay in order
    same = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
    repeated = np.zeros(len(hashes), np.bool_)
    repeated[order[1:]] = same
    return repeated


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
