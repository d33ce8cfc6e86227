"""The rows of a training stage: documents of a mixture, packed, in a fixed order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from glmcore._core import CoreMixture, pack_best_fit_split, pack_concat, shuffled
from glmcore.data.shards import TokenShards
from glmcore.errors import DataError
from glmcore.packing import PackedBatch


@dataclass(frozen=True)
class Source:
    """Documents with a share in a mixture."""

    name: str
    """Decides, with the seed, the order of the documents."""
    shards: TokenShards
    weight: float
    """Share of the tokens, relative to the other sources."""


class PackedRows:
    """All rows of a stage, planned at once; a pure function of its arguments, so a step number is all that resumes it.

    Documents are drawn so that every source keeps its share of the tokens; a source whose documents are used up starts
    again in a new order. Only the plan is in memory, tokens are read when a batch is made.

    Args:
        sources: The mixture.
        capacity: Tokens of a row.
        num_rows: Rows to plan.
        packing: `concat` lays documents end to end and cuts at row ends; `best_fit` keeps those that fit whole and
            shuffles the rows.
        seed: Same seed, same rows.
        pad_id: Fills the end of rows.

    Raises:
        DataError: A source is empty, or a shard is damaged.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        capacity: int,
        num_rows: int,
        packing: Literal["best_fit", "concat"],
        seed: int,
        pad_id: int,
    ) -> None:
        if num_rows < 1:
            raise DataError(f"num_rows must be at least 1, got {num_rows}")
        self.capacity = capacity
        self.pad_id = pad_id
        self._shards = [source.shards.core for source in sources]
        names = [source.name for source in sources]
        weights = [source.weight for source in sources]
        mixture = CoreMixture(list(zip(names, weights, self._shards, strict=True)), seed)
        self._source, self._document, lengths = mixture.draw(num_rows * capacity)
        if packing == "concat":
            rows = np.arange(num_rows, dtype=np.uint32)
            pieces = pack_concat(lengths, capacity)
        else:
            pieces = pack_best_fit_split(lengths, capacity)
            # Tokens for num_rows full rows are never packed into fewer; the surplus goes at random.
            rows = shuffled(pieces.num_rows, num_rows, seed, "rows")
        self._pieces = pieces.select_rows(rows)
        self.epochs_by_source = dict(zip(names, mixture.epochs(), strict=True))
        """How often all documents of each source were drawn."""
        document, _, length, _ = self._pieces.arrays()
        tokens = np.bincount(self._source[document], weights=length, minlength=len(names))
        self.tokens_by_source = dict(zip(names, tokens.astype(int).tolist(), strict=True))
        """Tokens of each source in the rows."""
        self.padding_fraction = 1.0 - float(length.sum(dtype=np.int64)) / (num_rows * capacity)
        """Share of padding in the rows."""

    def __len__(self) -> int:
        return self._pieces.num_rows

    def batch(self, first_row: int, num_rows: int) -> PackedBatch:
        """Rows `first_row` to `first_row + num_rows`.

        Raises:
            PackingError: There are fewer rows.
        """
        arrays = self._pieces.fill_from_shards(
            self._shards,
            self._source,
            self._document,
            (first_row, first_row + num_rows),
            self.capacity,
            self.pad_id,
        )
        return PackedBatch(*arrays)
