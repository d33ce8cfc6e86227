"""Sequence packing: documents into rows, and rows into the arrays of a training step.

Everything is deterministic: the same lengths give the same rows on every machine.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from glmcore import _core
from glmcore._core import Packing, Pieces
from glmcore.errors import PackingError

__all__ = [
    "IGNORED_LABEL",
    "PackedBatch",
    "Packing",
    "Pieces",
    "RaggedLike",
    "balance",
    "fill",
    "pack_best_fit",
    "pack_best_fit_split",
    "pack_concat",
]

IGNORED_LABEL = -100
"""Label of a token that the loss leaves out."""


class RaggedLike(Protocol):
    """Documents end to end in one array, such as `Tokenizer.encode_batch` gives.

    An attribute `loss_mask`, uint8 or bool [n], says which tokens are learned; without it all are.
    """

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """All ids, int32 [n]."""
        ...

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Bounds of the documents, int64 [documents + 1], from 0 to n."""
        ...


@dataclass(frozen=True)
class PackedBatch:
    """R rows of C tokens, row after row."""

    input_ids: npt.NDArray[np.int32]
    """Token ids, [R*C]; the padding id behind the last piece of a row."""
    labels: npt.NDArray[np.int32]
    """The next token of the piece, [R*C]; -100 where that is not learned, at a piece's end and on padding."""
    position_ids: npt.NDArray[np.int32]
    """Place in the piece, from 0, [R*C]; a row's padding counts as one piece."""
    loss_mask: npt.NDArray[np.uint8]
    """1 where the token itself is learned, [R*C]; 0 on padding."""
    cu_seqlens: npt.NDArray[np.int32]
    """Bounds of every piece in the flat arrays, [pieces + 1], from 0 to R*C."""
    max_seqlen: int
    """Length of the longest piece, padding included."""


def pack_best_fit(lengths: npt.ArrayLike, capacity: int) -> Packing:
    """A row for every document by best-fit decreasing: longest first, each into the fullest row it fits.

    Documents stay whole. Ties go to the earlier document and the lower row. An array of uint32 is read in
    place; other integers are copied.

    Args:
        lengths: Tokens of each document.
        capacity: Tokens of a row, at most 16,777,216.

    Returns:
        `.row_of` uint32 [documents], `.num_rows`, `.order` (documents by row, then by position in the row)
        and `.row_offsets` (bounds of the rows in `order`).

    Raises:
        PackingError: A document is longer than a row, or an argument is wrong.
    """
    return _core.pack_best_fit(_lengths(lengths), capacity)


def pack_best_fit_split(lengths: npt.ArrayLike, capacity: int) -> Pieces:
    """Rows by best-fit decreasing after cutting each document longer than a row into full rows and a rest.

    Raises:
        PackingError: An argument is wrong.
    """
    return _core.pack_best_fit_split(_lengths(lengths), capacity)


def pack_concat(lengths: npt.ArrayLike, capacity: int) -> Pieces:
    """Documents end to end, cut at every row's end, so that all rows but the last are full.

    Returns:
        The pieces in order: `.doc`, `.start` (first token in the document) and `.length`, uint32 [pieces],
        `.row_offsets` (bounds of the rows) and `.num_rows`.

    Raises:
        PackingError: An argument is wrong.
    """
    return _core.pack_concat(_lengths(lengths), capacity)


def balance(costs: npt.ArrayLike, num_ranks: int) -> npt.NDArray[np.uint32]:
    """Rank of each item, so that the ranks have even work: costliest first, each to the least loaded rank.

    The busiest rank has at most 4/3 - 1/(3 num_ranks) times the work of the best sharing.

    Args:
        costs: Work of each item, finite and not negative, in any unit.
        num_ranks: Number of ranks, at least 1.

    Raises:
        PackingError: A cost or the number of ranks is wrong.
    """
    array = np.asarray(costs)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise PackingError(f"costs must be a 1-D array of numbers, got {array.ndim}-D {array.dtype}")
    return _core.balance(np.ascontiguousarray(array, np.float64), num_ranks)


def fill(ragged: RaggedLike, packing: Packing | Pieces, capacity: int, pad_id: int) -> PackedBatch:
    """The arrays of all rows of a packing.

    Args:
        ragged: The documents that were packed.
        packing: What a pack function gave for their lengths.
        capacity: Tokens of a row, at least what was packed for.
        pad_id: Id behind the last document of a row.

    Raises:
        PackingError: The packing is of other documents, or an array has the wrong type.
    """
    loss_mask: Any = getattr(ragged, "loss_mask", None)
    if getattr(loss_mask, "dtype", None) == np.bool_:
        loss_mask = loss_mask.view(np.uint8)
    if loss_mask is not None:
        _check("loss_mask", loss_mask, np.uint8)
    _check("ids", ragged.ids, np.int32)
    _check("offsets", ragged.offsets, np.int64)
    return PackedBatch(*_core.fill(ragged.ids, ragged.offsets, loss_mask, packing, capacity, pad_id))


def _lengths(lengths: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    array = np.asarray(lengths)
    if array.ndim != 1:
        raise PackingError(f"lengths must be 1-D, got {array.ndim}-D")
    if array.dtype == np.uint32:
        return array
    if array.size == 0:
        return np.empty(0, np.uint32)
    if array.dtype.kind not in "iu":
        raise PackingError(f"lengths must be integers, got {array.dtype}")
    wrong = (array < 0) | (array > np.iinfo(np.uint32).max)
    if wrong.any():
        index = int(wrong.argmax())
        raise PackingError(f"document {index} has length {array[index]}, it must be from 0 to 4294967295")
    return array.astype(np.uint32)


def _check(name: str, array: npt.NDArray[Any], dtype: type[np.generic]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:  # pyright: ignore[reportUnnecessaryIsInstance]  # callers need not be typed
        found = f"{array.ndim}-D {array.dtype}" if hasattr(array, "dtype") else type(array).__name__
        raise PackingError(f"{name} must be a 1-D {dtype.__name__} array, got {found}")
