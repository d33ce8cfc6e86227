"""Samples of one length for pre-training, found without a plan: sample k is a pure function of the seed and k.

Documents of each source lie end to end and are cut into samples; each epoch cuts elsewhere and in another order.
Nothing is planned, stored or counted, so the first sample is there at once and memory does not grow, whatever the
length of a stage, and a run resumes from the number of its next sample, on any number of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glmcore._core import CoreSamples
from glmcore.data.contents import RowPiece
from glmcore.data.loader import Source, check_mixture
from glmcore.errors import DataError, PackingError
from glmcore.packing import PackedBatch, out_arrays


@dataclass(frozen=True)
class SamplePlace:
    """Where a sample is."""

    source: str
    epoch: int
    """How often the source was read before."""
    first_token: int
    """Counted through the source's documents."""


class SampleStream:
    """An endless list of samples of `capacity` tokens.

    Of the first k samples each source has its share by weight, off by at most `max_deviation` samples, less than 2;
    the tokens are exact since samples are of one length.
    """

    def __init__(self, sources: Sequence[Source], *, capacity: int, seed: int) -> None:
        """Mix sources by weight.

        Args:
            sources: What is mixed; each has at least `capacity` tokens. Documents that are neighbours in a source come
                in one sample.
            capacity: Tokens of a sample.
            seed: Decides the order, 0 to 2^64 - 1.

        Raises:
            DataError: The sources cannot be mixed.
        """
        check_mixture(sources, seed)
        if not 0 < capacity < 2**31:
            raise DataError(f"capacity is {capacity}, it must be from 1 to 2147483647")
        self.capacity = capacity
        self._sources = tuple(sources)
        names, weights = [source.name for source in sources], [source.weight for source in sources]
        self._core = CoreSamples(names, weights, [source.shards.core for source in sources], capacity, seed)

    @property
    def max_deviation(self) -> float:
        """How many samples a source can be off its share of the first k, whatever k is."""
        return self._core.max_deviation

    def place(self, k: int) -> SamplePlace:
        """Where sample k is."""
        source, epoch, first_token = self._core.sample(_index("k", k))
        return SamplePlace(self._sources[source].name, epoch, first_token)

    def contents(self, row: int) -> list[RowPiece]:
        """The documents of a sample."""
        number, _, first = self._core.sample(_index("row", row))
        source = self._sources[number]
        ends = np.cumsum(source.shards.lengths, dtype=np.int64)
        pieces: list[RowPiece] = []
        missing = self.capacity
        while missing:
            document = int(np.searchsorted(ends, first, side="right"))
            start = int(ends[document - 1]) if document else 0
            length = min(missing, int(ends[document]) - first)
            pieces.append(RowPiece(source.name, document, first - start, length))
            first, missing = (first + length) % int(ends[-1]), missing - length
        return pieces

    def samples_by_source(self, k: int) -> dict[str, int]:
        """Samples of each source among the first k."""
        counts = self._core.counts(_index("k", k))
        return {source.name: count for source, count in zip(self._sources, counts, strict=True)}

    def tokens_by_source(self, k: int) -> dict[str, int]:
        """Tokens of each source in the first k samples."""
        return {name: count * self.capacity for name, count in self.samples_by_source(k).items()}

    def epochs_by_source(self, k: int) -> dict[str, float]:
        """How often the first k samples go through each source."""
        per_epoch = self._core.samples_per_epoch
        counts = self.samples_by_source(k).items()
        return {name: count / size for (name, count), size in zip(counts, per_epoch, strict=True)}

    def tokens(
        self, first: int, count: int, length: int | None = None, out: npt.NDArray[np.int32] | None = None
    ) -> npt.NDArray[np.int32]:
        """Ids of samples `first` to `first + count - 1`, int32 [count, length].

        Args:
            first: Number of the first sample.
            count: Number of samples.
            length: Tokens of each from its beginning on; by default one more than a sample has, so that inputs and
                labels are `[:, :-1]` and `[:, 1:]`.
            out: Array that is written instead of a new one.

        Raises:
            DataError: A file is damaged, or `out` does not fit.
        """
        length = self.capacity + 1 if length is None else length
        if out is not None and out.dtype != np.int32:
            raise DataError(f"out must be int32, got {out.dtype}")
        return self._core.tokens(_index("first", first), _index("count", count), _index("length", length), out)

    def batch(self, first_row: int, num_rows: int, out: PackedBatch | None = None) -> PackedBatch:
        """Samples `first_row` to `first_row + num_rows - 1`, a row each, with the bounds of their documents.

        A row's last token has the token behind the row as its label, if its document goes on there.

        Args:
            first_row: Number of the first sample.
            num_rows: Number of samples.
            out: A batch whose arrays are written instead of new ones; see `glmcore.packing.fill`.

        Raises:
            PackingError: The numbers are negative, or the batch is too large.
            DataError: A file is damaged.
        """
        if first_row < 0 or not 0 <= num_rows < 2**31:
            raise PackingError(f"there are no rows {first_row} to {first_row + num_rows}")
        return PackedBatch(*self._core.fill(first_row, num_rows, 0, out_arrays(out)))


def _index(name: str, value: int) -> int:
    if not 0 <= value < 2**63:
        raise DataError(f"{name} is {value}, it must be from 0 to 2^63 - 1")
    return value
