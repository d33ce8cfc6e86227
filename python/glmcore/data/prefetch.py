"""Batches of a rank, made ahead of time in background threads.

Gathering tokens releases the interpreter, so the threads run beside the training loop. What comes is decided by the
step number alone: the order of rows does not depend on the number of ranks or threads, and a loader resumes from the
one integer that is its state.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from glmcore.data.contents import RowPiece
from glmcore.errors import DataError
from glmcore.packing import PackedBatch

ContextSplit = Literal["contiguous", "zigzag"]
"""How a row is cut over context-parallel ranks: into one stretch each, or into two, the r-th from the front and the
r-th from the back, which evens out causal attention."""


class Rows(Protocol):
    """Rows of packed tokens, such as `PackedRows` and `SampleStream`."""

    @property
    def capacity(self) -> int:
        """Tokens of a row."""
        ...

    def batch(self, first_row: int, num_rows: int) -> PackedBatch:
        """Some rows."""
        ...

    def contents(self, row: int) -> list[RowPiece]:
        """The documents of a row."""
        ...


@dataclass(frozen=True)
class ContextSlice:
    """A context-parallel rank's part of R rows, T tokens in all."""

    input_ids: npt.NDArray[np.int32]
    """[T]."""
    labels: npt.NDArray[np.int32]
    """Made before the rows were cut, so a stretch's last token keeps its label. [T]."""
    position_ids: npt.NDArray[np.int32]
    """[T]."""
    loss_mask: npt.NDArray[np.uint8]
    """[T]."""
    token_index: npt.NDArray[np.int64]
    """Place of each token in the whole batch, [T]; its documents are those of `cu_seqlens`."""
    cu_seqlens: npt.NDArray[np.int32]
    """Bounds of the documents in the whole batch, from 0 to R * capacity."""
    max_seqlen: int


def context_slice(
    batch: PackedBatch, capacity: int, rank: int, num_ranks: int, split: ContextSplit = "zigzag"
) -> ContextSlice:
    """What one of `num_ranks` context-parallel ranks holds of every row of a batch.

    With `zigzag` a row is cut into `2 num_ranks` stretches and rank r has stretches r and `2 num_ranks - 1 - r`: of a
    causal mask over the row every rank then has the same number of pairs, up to the diagonal.

    Args:
        batch: Whole rows.
        capacity: Tokens of a row; has to be a multiple of the number of stretches.
        rank: From 0.
        num_ranks: At least 1.
        split: How rows are cut.

    Raises:
        DataError: The row cannot be cut so.
    """
    if not 0 <= rank < num_ranks:
        raise DataError(f"context rank {rank} is not one of {num_ranks}")
    if split not in ("contiguous", "zigzag"):
        raise DataError(f"split is {split!r}, it must be 'contiguous' or 'zigzag'")
    stretches = [rank] if split == "contiguous" else [rank, 2 * num_ranks - 1 - rank]
    num_stretches = num_ranks * len(stretches)
    if capacity % num_stretches:
        raise DataError(f"rows of {capacity} tokens cannot be cut into {num_stretches} equal stretches")
    size = capacity // num_stretches
    in_row = np.concatenate([np.arange(start * size, (start + 1) * size) for start in stretches])
    rows = np.arange(len(batch.input_ids) // capacity)
    index = (rows[:, None] * capacity + in_row).reshape(-1)
    return ContextSlice(
        batch.input_ids[index],
        batch.labels[index],
        batch.position_ids[index],
        batch.loss_mask[index],
        index,
        batch.cu_seqlens,
        batch.max_seqlen,
    )


class Loader:
    """Batches of a data-parallel rank, step after step, prepared while the step before runs.

    A step takes a range of rows; rank r of n has the r-th n-th of them. Use it in a `with` block, or `close` it.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        rows_per_step: int | Callable[[int], range],
        first_step: int = 0,
        num_steps: int | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        rows_per_micro_batch: int | None = None,
        depth: int = 2,
        num_threads: int = 1,
    ) -> None:
        """Begin to load.

        Args:
            rows: Where rows come from.
            rows_per_step: Rows of a step on all ranks, a multiple of `num_ranks`, so that step s takes rows
                `s * rows_per_step` and those that follow; or a function from the number of a step to its rows.
            first_step: The state of the loader that this one goes on for.
            num_steps: Where to stop, counted from step 0 of the run; endless by default.
            rank: Number of this data-parallel rank, from 0.
            num_ranks: Number of data-parallel ranks.
            rows_per_micro_batch: Rows of one batch at most; by default all of the rank's rows of a step.
            depth: Steps prepared ahead, at least 1.
            num_threads: Threads that prepare them, at least 1.

        Raises:
            DataError: The numbers do not fit.
        """
        if isinstance(rows_per_step, int):
            _check_divides(rows_per_step, num_ranks)
        if not 0 <= rank < num_ranks:
            raise DataError(f"rank {rank} is not one of {num_ranks}")
        if first_step < 0 or depth < 1 or num_threads < 1:
            raise DataError(
                f"first_step={first_step} must be at least 0, depth={depth} and num_threads={num_threads} at least 1"
            )
        if rows_per_micro_batch is not None and rows_per_micro_batch < 1:
            raise DataError(f"rows_per_micro_batch is {rows_per_micro_batch}, it must be at least 1")
        self._rows = rows
        self._rows_per_step = rows_per_step
        self._rank, self._num_ranks = rank, num_ranks
        self._rows_per_micro_batch = rows_per_micro_batch
        self._num_steps = num_steps
        self._depth = depth
        self._next_step = first_step
        self._pending: deque[Future[list[PackedBatch]]] = deque()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="glmcore-loader")

    @property
    def state(self) -> int:
        """The step whose batches come next: `first_step` of a loader that goes on from here."""
        return self._next_step

    def __iter__(self) -> Iterator[list[PackedBatch]]:
        return self

    def __next__(self) -> list[PackedBatch]:
        """The micro-batches of the next step.

        Raises:
            DataError: A file is damaged.
            PackingError: There are no such rows.
        """
        while len(self._pending) < self._depth and not self._is_past(step := self._next_step + len(self._pending)):
            self._pending.append(self._pool.submit(self._load, step))
        if not self._pending:
            raise StopIteration
        try:
            batches = self._pending[0].result()
        except BaseException:
            self._pending.clear()  # the step is still the next one: asking again tries again
            raise
        self._pending.popleft()
        self._next_step += 1
        return batches

    def close(self) -> None:
        """Stop preparing; what was prepared is dropped, and the state stays."""
        self._pending.clear()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_past(self, step: int) -> bool:
        return self._num_steps is not None and step >= self._num_steps

    def _load(self, step: int) -> list[PackedBatch]:
        own = self.rows_of(step)
        size = self._rows_per_micro_batch or len(own)
        return [self._rows.batch(start, min(size, own.stop - start)) for start in own[::size]]

    def rows_of(self, step: int) -> range:
        """This rank's rows of a step.

        Raises:
            DataError: They cannot be shared out evenly.
        """
        size = self._rows_per_step
        rows = range(step * size, (step + 1) * size) if isinstance(size, int) else size(step)
        _check_divides(len(rows), self._num_ranks)
        share = len(rows) // self._num_ranks
        return rows[self._rank * share : (self._rank + 1) * share]


def _check_divides(rows_per_step: int, num_ranks: int) -> None:
    if rows_per_step < 1 or num_ranks < 1 or rows_per_step % num_ranks:
        raise DataError(f"rows_per_step={rows_per_step} must be a multiple of num_ranks={num_ranks}, both at least 1")
