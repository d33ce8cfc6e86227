"""Token ids of many texts in one array."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glmcore.errors import TokenizerError

TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Ragged:
    """Token ids of many texts in one array; item i is a view of text i's ids."""

    ids: TokenIds
    """All ids, int32 [n]."""
    offsets: npt.NDArray[np.int64]
    """Bounds of the texts, int64 [texts + 1], starting at 0."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> TokenIds:
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        index %= len(self)
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[TokenIds]:
        return (self[index] for index in range(len(self)))

    def truncate(self, max_length: int) -> "Ragged":
        """The first `max_length` ids of each text, at least 1."""
        if max_length < 1:
            raise TokenizerError(f"max_length must be at least 1, got {max_length}")
        return _gather(self.ids, self.offsets[:-1], np.minimum(np.diff(self.offsets), max_length))

    def windows(self, max_length: int, stride: int = 0) -> "Windows":
        """All ids of each text in windows of `max_length`, each repeating the last `stride` ids of the one before.

        Args:
            max_length: At least 1.
            stride: From 0 to max_length - 1.
        """
        if not 0 <= stride < max_length:
            raise TokenizerError(f"stride must be from 0 to max_length - 1 = {max_length - 1}, got {stride}")
        lengths = np.diff(self.offsets)
        step = max_length - stride
        counts = 1 + np.maximum(0, -(-(lengths - max_length) // step))
        texts = np.repeat(np.arange(len(self)), counts)
        place = np.arange(len(texts)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = self.offsets[texts] + place * step
        return Windows(_gather(self.ids, starts, np.minimum(max_length, self.offsets[texts + 1] - starts)), texts)


@dataclass(frozen=True)
class Windows:
    """Texts cut into windows."""

    windows: Ragged
    """Ids of each window."""
    texts: npt.NDArray[np.int64]
    """Number of the text that each window comes from, int64 [windows]."""


def _gather(ids: TokenIds, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Ragged:
    """Stretches of `ids`, one after the other."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places: npt.NDArray[np.int64] = np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], lengths)
    return Ragged(ids[places], offsets)
