"""Blocks of best-fit rows that a run goes on with at once, since where they begin is written down."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from glmcore.data.blocks import BlockStart, PackedBlocks
from glmcore.data.contents import RowPiece
from glmcore.packing import PackedBatch


class RememberedBlocks:
    """The rows of `PackedBlocks`, from any of them on, without planning the blocks before.

    The file has a JSON line for each block that was reached. It saves time and decides nothing: rows are the same
    without it, and a line that a crash has cut short is as good as none.
    """

    def __init__(
        self, make: Callable[[BlockStart | None], PackedBlocks], file: Path, first_row: int, *, writes: bool = True
    ) -> None:
        """Begin at the last known block that has `first_row`, or one before it.

        Args:
            make: Gives the rows from a block's start on, or all for None.
            file: Where starts are written down.
            first_row: No row before it is asked for.
            writes: Whether this process writes; others only read.
        """
        self._file, self._writes = file, writes
        known = [start for start in _read(file) if start.first_row <= first_row]
        self._blocks = make(max(known, key=lambda start: start.block, default=None))
        self._known = {start.block for start in known}
        self.capacity = self._blocks.capacity

    def batch(self, first_row: int, num_rows: int) -> PackedBatch:
        """Some rows; see `PackedBlocks`."""
        batch = self._blocks.batch(first_row, num_rows)
        start = self._blocks.start_of(first_row)
        if self._writes and start.block not in self._known:
            self._known.add(start.block)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(start)) + "\n")
        return batch

    def contents(self, row: int) -> list[RowPiece]:
        """The documents of a row."""
        return self._blocks.contents(row)


def _read(file: Path) -> list[BlockStart]:
    starts: list[BlockStart] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        progress = tuple((seen, read) for seen, read in told["progress"])
        starts.append(BlockStart(told["block"], told["first_row"], progress))
    return starts
