"""Rows in which every token of every document is learned, whatever a conversation's mask says."""

import numpy as np

from glmcore.data.contents import RowPiece
from glmcore.data.prefetch import Rows
from glmcore.packing import PackedBatch


class AllLearned:
    """`rows` with a label for every token but the last of each piece, and padding as it was.

    The last token of a piece keeps the label that it has: the token behind the row, or none.
    """

    def __init__(self, rows: Rows, pad_id: int) -> None:
        self._rows = rows
        self._pad_id = pad_id
        self.capacity = rows.capacity

    def batch(self, first_row: int, num_rows: int) -> PackedBatch:
        """Some rows; see `Rows`."""
        batch = self._rows.batch(first_row, num_rows)
        ids, lengths = batch.input_ids, np.diff(batch.cu_seqlens)
        starts = batch.cu_seqlens[:-1][lengths > 0]
        learned = np.logical_or.reduceat((batch.loss_mask != 0) | (ids != self._pad_id), starts)
        mask = np.repeat(learned, lengths[lengths > 0])
        labels = batch.labels.copy()
        inner = mask.copy()
        inner[batch.cu_seqlens[1:] - 1] = False
        place = np.flatnonzero(inner)
        labels[place] = ids[place + 1]
        return PackedBatch(ids, labels, batch.position_ids, mask.astype(np.uint8), batch.cu_seqlens, batch.max_seqlen)

    def contents(self, row: int) -> list[RowPiece]:
        """The documents of a row."""
        return self._rows.contents(row)
