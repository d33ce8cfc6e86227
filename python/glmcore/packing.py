"""Sequence packing: documents into rows, and rows into the arrays of a training step.

Everything is deterministic: the same lengths give the same rows on every machine.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from glmcore import _core
from glmcore._core import CoreBestFitStream, Packing, Pieces
from glmcore.errors import PackingError

__all__ = [
    "IGNORED_LABEL",
    "BestFitStream",
    "PackedBatch",
    "Packing",
    "Pieces",
    "RaggedLike",
    "StreamReport",
    "StreamState",
    "TooLong",
    "balance",
    "balance_micro_batches",
    "check_array",
    "fill",
    "out_arrays",
    "pack_best_fit",
    "pack_concat",
    "pack_documents",
]

TooLong = Literal["error", "split", "truncate", "drop"]
"""What happens to a document longer than a row: refuse to pack, cut it into rows and a rest, keep its first row's
worth of tokens, or leave it out."""

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


def pack_documents(lengths: npt.ArrayLike, capacity: int, *, too_long: TooLong, seed: int | None = None) -> Pieces:
    """Rows by best-fit decreasing. Documents are whole but for those longer than a row.

    Args:
        lengths: Tokens of each document.
        capacity: Tokens of a row, at most 16,777,216.
        too_long: What happens to documents longer than a row.
        seed: Shuffles the rows, 0 to 2^64 - 1; without it those with the longest documents come first.

    Returns:
        The pieces as of `pack_concat`, with `.num_too_long` documents longer than a row and the
        `.num_lost_tokens` of theirs that are in no row.

    Raises:
        PackingError: A document is longer than a row and `too_long` is `error`, or an argument is wrong.
    """
    pieces = _core.pack_documents(_lengths(lengths), capacity, too_long)
    if seed is None:
        return pieces
    if not 0 <= seed < 2**64:
        raise PackingError(f"seed is {seed}, it must be from 0 to 2^64 - 1")
    return pieces.select_rows(_core.shuffled(pieces.num_rows, seed, "rows"))


def pack_concat(lengths: npt.ArrayLike, capacity: int) -> Pieces:
    """Documents end to end, cut at every row's end, so that all rows but the last are full.

    Returns:
        The pieces in order: `.doc`, `.start` (first token in the document) and `.length`, uint32 [pieces],
        `.row_offsets` (bounds of the rows) and `.num_rows`.

    Raises:
        PackingError: An argument is wrong.
    """
    return _core.pack_concat(_lengths(lengths), capacity)


def balance(costs: npt.ArrayLike, num_ranks: int, *, equal_counts: bool = False) -> npt.NDArray[np.uint32]:
    """Rank of each item, so that the ranks have even work, by the method of Karmarkar and Karp.

    The busiest rank has at most 4/3 - 1/(3 num_ranks) times the work of the best sharing, unless counts have to
    be equal; with many items of any size it is off by parts in a million.

    Args:
        costs: Work of each item, finite and not negative, in any unit; for training steps
            `linear * lengths + quadratic * lengths**2` with the coefficients that
            `glmcore.model.flops.training_flops` gives.
        num_ranks: Number of ranks, at least 1.
        equal_counts: Whether the ranks' numbers of items may differ by at most one.

    Raises:
        PackingError: A cost or the number of ranks is wrong.

    Source: Karmarkar and Karp, The differencing method of set partitioning, 1982.
    """
    array = np.asarray(costs)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise PackingError(f"costs must be a 1-D array of numbers, got {array.ndim}-D {array.dtype}")
    return _core.balance(np.ascontiguousarray(array, np.float64), num_ranks, equal_counts)


def balance_micro_batches(
    costs: npt.ArrayLike, num_ranks: int, num_micro_batches: int, *, equal_counts: bool = False
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Rank and micro-batch of each item: even work over the ranks, then over each rank's micro-batches.

    Micro-batch m is of about the same cost on every rank, since each rank numbers its own from the costliest on, so
    ranks that wait for each other after every micro-batch wait little.

    Args:
        costs: As of `balance`.
        num_ranks: Number of data-parallel ranks, at least 1.
        num_micro_batches: Number of each rank's micro-batches, at least 1.
        equal_counts: As of `balance`, for both sharings.

    Raises:
        PackingError: A cost or a number is wrong.
    """
    rank_of = balance(costs, num_ranks, equal_counts=equal_counts)
    array = np.asarray(costs, np.float64)
    micro_batch_of = np.zeros(len(rank_of), np.uint32)
    for rank in range(num_ranks):
        mine = np.flatnonzero(rank_of == rank)
        part = balance(array[mine], num_micro_batches, equal_counts=equal_counts)
        loads = np.bincount(part, weights=array[mine], minlength=num_micro_batches)
        order = np.argsort(-loads, kind="stable")
        place = np.empty(num_micro_batches, np.uint32)
        place[order] = np.arange(num_micro_batches, dtype=np.uint32)
        micro_batch_of[mine] = place[part]
    return rank_of, micro_batch_of


def fill(
    ragged: RaggedLike, packing: Packing | Pieces, capacity: int, pad_id: int, out: PackedBatch | None = None
) -> PackedBatch:
    """The arrays of all rows of a packing, in one pass.

    Args:
        ragged: The documents that were packed.
        packing: What a pack function gave for their lengths.
        capacity: Tokens of a row, at least what was packed for.
        pad_id: Id behind the last document of a row.
        out: A batch of as many tokens, whose arrays are written instead of new ones: such as numpy views of
            pinned torch tensors. Its `cu_seqlens` and `max_seqlen` are left.

    Raises:
        PackingError: The packing is of other documents, or an array has the wrong type or size.
    """
    loss_mask = _loss_mask(ragged)
    check_array("ids", ragged.ids, np.int32)
    check_array("offsets", ragged.offsets, np.int64)
    arrays = out_arrays(out)
    return PackedBatch(*_core.fill(ragged.ids, ragged.offsets, loss_mask, packing, capacity, pad_id, arrays))


def out_arrays(
    out: PackedBatch | None,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.uint8]] | None:
    """The arrays of a batch that is written to.

    Raises:
        PackingError: An array has the wrong type or cannot be written.
    """
    if out is None:
        return None
    arrays = (out.input_ids, out.labels, out.position_ids, out.loss_mask)
    for name, array in zip(("input_ids", "labels", "position_ids", "loss_mask"), arrays, strict=True):
        check_array(f"out.{name}", array, np.uint8 if name == "loss_mask" else np.int32)
        if not (array.flags.writeable and array.flags.c_contiguous):
            raise PackingError(f"out.{name} must be writable and C-contiguous")
    return arrays


@dataclass(frozen=True)
class StreamReport:
    """What a stream packed so far."""

    num_rows: int
    num_padding_tokens: int
    num_cropped: int
    """Pieces whose end was cropped to fill a row."""
    num_lost_tokens: int
    """Tokens in no row: cropped, or beyond a row in a document that was truncated or dropped."""
    num_too_long: int
    """Documents longer than a row."""


@dataclass(frozen=True)
class StreamState:
    """Where a stream is: a new one that resumes from it goes on as the old one would."""

    doc: npt.NDArray[np.uint32]
    """Document of each piece that waits, from the oldest."""
    start: npt.NDArray[np.uint32]
    length: npt.NDArray[np.uint32]
    next_doc: int
    """Number of the next document."""


class BestFitStream:
    """Packs documents that never end, with at most `window` pieces waiting.

    A row begins with the piece that waits longest, so none waits for more than `window` rows, and ends where possible
    with one or two pieces that fill it exactly. Documents are numbered in the order given, modulo 2^32.
    """

    def __init__(self, capacity: int, *, window: int, too_long: TooLong, crop: bool = False) -> None:
        """Begin a stream.

        Args:
            capacity: Tokens of a row, at most 16,777,216.
            window: Pieces that wait for a row, at least 1; about a thousand loses next to nothing.
            too_long: What happens to documents longer than a row.
            crop: Fill a row's last tokens with the head of the shortest piece, whose tail is lost, instead of padding.

        Raises:
            PackingError: An argument is wrong.
        """
        self._core = CoreBestFitStream(capacity, window, too_long, crop)

    def push(self, lengths: npt.ArrayLike) -> Pieces:
        """Add documents; gives the rows that are complete.

        Raises:
            PackingError: A document is longer than a row and that is an error; the stream is then as before.
        """
        return self._core.push(_lengths(lengths))

    def finish(self) -> Pieces:
        """The rows of all pieces that wait; nothing is cropped any more."""
        return self._core.finish()

    @property
    def report(self) -> StreamReport:
        """What was packed so far; counts from the beginning or the last `resume`."""
        return StreamReport(*self._core.report())

    @property
    def state(self) -> StreamState:
        """Where the stream is."""
        return StreamState(*self._core.waiting(), self._core.next_doc)

    def resume(self, state: StreamState) -> None:
        """Go on from a state of a stream with the same arguments; this one has to be empty.

        Raises:
            PackingError: The state does not fit the stream.
        """
        self._core.resume(state.doc, state.start, state.length, state.next_doc)


def _loss_mask(ragged: RaggedLike) -> npt.NDArray[np.uint8] | None:
    loss_mask: Any = getattr(ragged, "loss_mask", None)
    if getattr(loss_mask, "dtype", None) == np.bool_:
        loss_mask = loss_mask.view(np.uint8)
    if loss_mask is not None:
        check_array("loss_mask", loss_mask, np.uint8)
    return loss_mask


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


def check_array(name: str, array: npt.NDArray[Any], dtype: type[np.generic]) -> None:
    """Refuse what is not a 1-D array of one type.

    Raises:
        PackingError: It is something else; the message names it.
    """
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:  # pyright: ignore[reportUnnecessaryIsInstance]  # callers need not be typed
        found = f"{array.ndim}-D {array.dtype}" if hasattr(array, "dtype") else type(array).__name__
        raise PackingError(f"{name} must be a 1-D {dtype.__name__} array, got {found}")
