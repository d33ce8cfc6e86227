"""Best-fit rows without end, planned a block at a time: the memory of two or three plans, and a few integers a block.

A block is some million tokens of whole documents, drawn where the block before stopped and packed by themselves. So its
plan follows from a few integers, which a checkpoint can hold; without them the blocks before are drawn again, some
million documents a second.
"""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from glmcore._core import CoreDraws, draw, shuffled
from glmcore.data.contents import RowPiece, drawn_contents
from glmcore.data.loader import Source, check_mixture
from glmcore.errors import PackingError
from glmcore.packing import PackedBatch, Pieces, TooLong, pack_documents

KEPT_BLOCKS = 2
"""Plans in memory: a step can end one block and begin the next."""


@dataclass(frozen=True)
class BlockStart:
    """Where a block begins: all that a run has to remember."""

    block: int
    """Number of the block, from 0."""
    first_row: int
    """Its first row, counted from the beginning of the run."""
    progress: tuple[tuple[int, int], ...]
    """Documents and tokens drawn of each source before it, over all epochs; empty at the beginning."""


@dataclass(frozen=True)
class _Plan:
    start: BlockStart
    draws: CoreDraws
    pieces: Pieces

    @property
    def end_row(self) -> int:
        return self.start.first_row + self.pieces.num_rows


class PackedBlocks:
    """An endless list of rows of `capacity` tokens, documents whole but for those longer than a row.

    The shares of the tokens follow the weights to within one document of each source, as in `PackedRows`. Blocks come
    in order, rows are shuffled within each, and the last row or two of a block are less full than others.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        capacity: int,
        seed: int,
        pad_id: int,
        rows_per_block: int = 4096,
        too_long: Literal["split", "truncate", "drop"] = "split",
        start: BlockStart | None = None,
    ) -> None:
        """Begin, or go on from the start of a block.

        Args:
            sources: What is mixed.
            capacity: Tokens of a row.
            seed: Decides the order, 0 to 2^64 - 1.
            pad_id: Id behind the last document of a row.
            rows_per_block: A block is drawn until it has the tokens of so many rows; at least 1.
            too_long: What happens to documents longer than a row: see `glmcore.packing.pack_documents`.
            start: What `start_of` gave for a row, with the same other arguments; rows before it are not there.

        Raises:
            DataError: The sources cannot be mixed.
            PackingError: A number is out of range.
        """
        if rows_per_block < 1 or capacity < 1:
            raise PackingError(f"rows_per_block={rows_per_block} and capacity={capacity} must be at least 1")
        check_mixture(sources, seed)
        self.capacity = capacity
        self.rows_per_block = rows_per_block
        self._sources = tuple(sources)
        self._seed, self._pad_id = seed, pad_id
        self._too_long: TooLong = too_long
        self._lock = threading.Lock()
        self._begin = start or BlockStart(0, 0, ())
        self._last = self._plan(self._begin)
        self._kept: OrderedDict[int, _Plan] = OrderedDict()
        self._starts = [self._begin]

    def batch(self, first_row: int, num_rows: int) -> PackedBatch:
        """Rows `first_row` to `first_row + num_rows - 1` of the run.

        Raises:
            PackingError: The rows are before the start, or the batch is too large.
            DataError: A shard is damaged.
        """
        if num_rows < 0:
            raise PackingError(f"num_rows is {num_rows}, it must be at least 0")
        parts = []
        while not parts or num_rows:
            plan = self._plan_with(first_row)
            count = min(num_rows, plan.end_row - first_row)
            row = first_row - plan.start.first_row
            parts.append(PackedBatch(*plan.draws.fill(plan.pieces, row, count, self.capacity, self._pad_id, None)))
            first_row, num_rows = first_row + count, num_rows - count
        return parts[0] if len(parts) == 1 else _join(parts)

    def contents(self, row: int) -> list[RowPiece]:
        """The documents of a row."""
        plan = self._plan_with(row)
        names = [source.name for source in self._sources]
        return drawn_contents(names, plan.draws, plan.pieces, row - plan.start.first_row)

    def start_of(self, row: int) -> BlockStart:
        """Where the block of a row begins.

        Raises:
            PackingError: The row is before the start.
        """
        return self._plan_with(row).start

    def _plan_with(self, row: int) -> _Plan:
        """The plan of the block that has a row; blocks on the way are planned once, their starts kept."""
        if row < self._begin.first_row:
            raise PackingError(f"row {row} is before row {self._begin.first_row}, where these rows start")
        with self._lock:
            while self._last.end_row <= row:
                self._last = self._plan(self._next_start(self._last))
                self._starts.append(self._last.start)
            start = self._starts[bisect.bisect_right(self._starts, row, key=lambda start: start.first_row) - 1]
            if start == self._last.start:
                return self._last
            if start.block not in self._kept:
                self._kept[start.block] = self._plan(start)
                while len(self._kept) > KEPT_BLOCKS:
                    self._kept.popitem(last=False)
            return self._kept[start.block]

    def _plan(self, start: BlockStart) -> _Plan:
        names, weights = [s.name for s in self._sources], [s.weight for s in self._sources]
        shards = [s.shards.core for s in self._sources]
        num_tokens = self.rows_per_block * self.capacity
        draws = draw(names, weights, shards, self._seed, num_tokens, list(start.progress))
        pieces = pack_documents(draws.length, self.capacity, too_long=self._too_long)
        if not pieces.num_rows:
            raise PackingError(
                f"with too_long={self._too_long!r} no document of block {start.block} is in rows of {self.capacity}"
            )
        return _Plan(start, draws, pieces.select_rows(shuffled(pieces.num_rows, self._seed, f"rows {start.block}")))

    def _next_start(self, plan: _Plan) -> BlockStart:
        source, length = plan.draws.source, plan.draws.length
        documents = np.bincount(source, minlength=len(self._sources))
        tokens = np.zeros(len(self._sources), np.uint64)
        np.add.at(tokens, source, length)
        before = plan.start.progress or ((0, 0),) * len(self._sources)
        drawn = zip(before, documents.tolist(), tokens.tolist(), strict=True)
        progress = tuple((seen + more, read + longer) for (seen, read), more, longer in drawn)
        return BlockStart(plan.start.block + 1, plan.end_row, progress)


def _join(parts: Sequence[PackedBatch]) -> PackedBatch:
    bounds = [parts[0].cu_seqlens]
    for part in parts[1:]:
        bounds.append(part.cu_seqlens[1:] + bounds[-1][-1])
    return PackedBatch(
        np.concatenate([part.input_ids for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.position_ids for part in parts]),
        np.concatenate([part.loss_mask for part in parts]),
        np.concatenate(bounds),
        max(part.max_seqlen for part in parts),
    )
