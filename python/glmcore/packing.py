"""Sequence packing: documents into rows of a batch. Lengths in, row numbers out; then rows of token arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from glmcore import _core
from glmcore._core import CorePieces

Lengths = Sequence[int] | npt.NDArray[np.uint32]
Int32Array = npt.NDArray[np.int32]


class RaggedTokens(Protocol):
    """Token ids of documents end to end; `glmcore.Ragged` is one. It may have a `loss_mask`, uint8 [n]."""

    @property
    def ids(self) -> Int32Array:
        """int32 [n]."""
        ...

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Bounds of the documents, int64 [documents + 1], starting at 0."""
        ...


@dataclass(frozen=True)
class Packing:
    """Which documents, or pieces of them, share a row."""

    num_rows: int
    row_of: npt.NDArray[np.uint32]
    """Row of each document, uint32 [documents]; empty for a packing that cuts documents."""
    order: npt.NDArray[np.uint32]
    """Documents by row, then by place in the row; empty for a packing that cuts documents."""
    pieces: CorePieces = field(repr=False)
    """Where every piece comes from and goes to, for `fill`."""


@dataclass(frozen=True)
class PackedBatch:
    """Rows of equal length, flat: row r holds tokens `r * capacity` to `(r + 1) * capacity`."""

    input_ids: Int32Array
    """int32 [T]."""
    labels: Int32Array
    """The next token of the same piece, or -100 where nothing is to be learned, int32 [T]."""
    position_ids: Int32Array
    """Place of each token in its piece, int32 [T]."""
    loss_mask: npt.NDArray[np.uint8]
    """1 where the token itself is learned, uint8 [T]."""
    cu_seqlens: Int32Array
    """Bounds of all pieces from 0 to T; a row's padding is one piece, int32 [pieces + 1]."""
    max_seqlen: int
    """Length of the longest piece."""


def pack_best_fit(lengths: Lengths, capacity: int) -> Packing:
    """Pack by best-fit decreasing: the longest document first, each into the fullest row it fits.

    Deterministic; ties go to the earlier document and the lower row.

    Raises:
        PackingError: A document is longer than `capacity`.

    Source: Johnson et al., SIAM J. Comput. 3(4), 1974: at most 11/9 of the fewest possible rows, and 4.
    """
    row_of, order, pieces = _core.pack_best_fit(_lengths(lengths), capacity)
    return Packing(pieces.num_rows, row_of, order, pieces)


def pack_best_fit_split(lengths: Lengths, capacity: int) -> Packing:
    """As `pack_best_fit`, after cutting documents longer than `capacity` into pieces of `capacity` and one rest."""
    return _of_pieces(_core.pack_best_fit_split(_lengths(lengths), capacity))


def pack_concat(lengths: Lengths, capacity: int) -> Packing:
    """Lay documents end to end and cut at every row's end.

    Source: GLM-4.5 report (arXiv:2508.06471), section 2.3, for pre-training.
    """
    return _of_pieces(_core.pack_concat(_lengths(lengths), capacity))


def balance(costs: Sequence[float] | npt.NDArray[np.float64], num_ranks: int) -> npt.NDArray[np.uint32]:
    """Rank of each item so that work is even: the costliest first, each to the rank with the least so far.

    Raises:
        PackingError: A cost is negative or not finite, or there are no ranks.
    """
    return _core.balance(np.ascontiguousarray(costs, np.float64), num_ranks)


def fill(ragged: RaggedTokens, packing: Packing, capacity: int, pad_id: int) -> PackedBatch:
    """Arrays of all rows of `packing`.

    Args:
        ragged: The documents whose lengths were packed.
        packing: Where they go.
        capacity: Tokens of a row.
        pad_id: Fills the end of rows.

    Raises:
        PackingError: The packing is of other documents or for longer rows.
    """
    documents = (ragged.ids, ragged.offsets, getattr(ragged, "loss_mask", None))
    return PackedBatch(*packing.pieces.fill(documents, (0, packing.num_rows), capacity, pad_id))


def _of_pieces(pieces: CorePieces) -> Packing:
    none = np.empty(0, np.uint32)
    return Packing(pieces.num_rows, none, none, pieces)


def _lengths(lengths: Lengths) -> npt.NDArray[np.uint32]:
    """Lengths as the core takes them; an array of another type or stride is an error, not a hidden copy."""
    return lengths if isinstance(lengths, np.ndarray) else np.array(lengths, np.uint32)
