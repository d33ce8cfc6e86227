"""Packed rows of a training stage, drawn from a mixture of sources.

The rows are planned once, as indices; tokens are gathered from the mapped files when a batch is asked for.
Plan and batches follow from the arguments alone, so a run resumes from its step number, with any number of
processes, on any machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from glmcore._core import CoreDraws, draw, shuffled
from glmcore.data.contents import RowPiece, drawn_contents
from glmcore.data.shards import TokenShards
from glmcore.errors import DataError, PackingError
from glmcore.packing import PackedBatch, Pieces, TooLong, out_arrays, pack_concat, pack_documents

MAX_LOSS = 64
"""Tokens drawn for each one that has to be in the rows, before truncating or dropping counts as a mistake."""


@dataclass(frozen=True)
class Source:
    """Documents with a share in a mixture."""

    name: str
    """Unique in its mixture; the order of the documents follows from it and the seed."""
    shards: TokenShards
    weight: float
    """Share of the tokens, relative to the other sources."""

    @classmethod
    def by_epochs(cls, shards: Mapping[str, TokenShards], epochs: Mapping[str, float]) -> list["Source"]:
        """Sources weighted so that, by the time one is read `epochs` times, so is every other as often as it says.

        For quality buckets that are up-sampled, or left out with 0 epochs.

        Raises:
            DataError: A source has no number of epochs, or a negative one.
        """
        for name in shards:
            if not epochs.get(name, -1.0) >= 0:
                raise DataError(f"source {name!r} has {epochs.get(name)} epochs, it must have 0 or more")
        return [cls(name, part, epochs[name] * part.num_tokens) for name, part in shards.items() if epochs[name]]


class PackedRows:
    """`num_rows` rows of `capacity` tokens. Building it plans all rows and reads no token."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        capacity: int,
        num_rows: int,
        packing: Literal["best_fit", "concat"],
        seed: int,
        pad_id: int,
        too_long: Literal["split", "truncate", "drop"] = "split",
    ) -> None:
        """Draw whole documents by weight and pack them.

        Args:
            sources: What is mixed. The shares of the tokens follow the weights to within one document of
                each source; a source that runs out begins anew in another order.
            capacity: Tokens of a row.
            num_rows: Rows of the stage.
            packing: `best_fit` keeps documents whole but for those longer than a row; `concat` lays them end to end
                in the order drawn and cuts at each row's end. Rows are shuffled,
                so that a long document does not fill a whole step.
            seed: Decides the order, 0 to 2^64 - 1.
            pad_id: Id behind the last document of a row.
            too_long: What best fit does with documents longer than a row: see `glmcore.packing.pack_documents`.

        Raises:
            DataError: The sources cannot be mixed or a shard is damaged.
            PackingError: The rows cannot be packed as asked.
        """
        if packing not in ("best_fit", "concat"):
            raise PackingError(f"packing is {packing!r}, it must be 'best_fit' or 'concat'")
        if num_rows < 1 or capacity < 1:
            raise PackingError(f"num_rows={num_rows} and capacity={capacity} must be at least 1")
        check_mixture(sources, seed)
        self.capacity = capacity
        self.pad_id = pad_id
        self._sources = tuple(sources)
        if packing == "concat":
            self._draws = _draw(sources, seed, num_rows * capacity)
            pieces = pack_concat(self._draws.length, capacity)
            rows = np.arange(num_rows, dtype=np.uint32)
        else:
            self._draws = _draw_rows(sources, seed, capacity, num_rows, too_long)
            pieces = _best_fit(self._draws.length, capacity, num_rows, too_long)
            rows = _fullest(pieces, num_rows)
        self._pieces = pieces.select_rows(rows[shuffled(num_rows, seed, "rows")])

    def __len__(self) -> int:
        return self._pieces.num_rows

    def batch(self, first_row: int, num_rows: int, out: PackedBatch | None = None) -> PackedBatch:
        """Rows `first_row` to `first_row + num_rows - 1` of the stage.

        Args:
            first_row: From 0.
            num_rows: At least 0.
            out: A batch whose arrays are written instead of new ones; see `glmcore.packing.fill`.

        Raises:
            PackingError: There are no such rows.
            DataError: A shard is damaged.
        """
        if first_row < 0 or num_rows < 0 or first_row + num_rows > len(self):
            raise PackingError(f"rows {first_row} to {first_row + num_rows} are not among the {len(self)} rows")
        arrays = out_arrays(out)
        return PackedBatch(*self._draws.fill(self._pieces, first_row, num_rows, self.capacity, self.pad_id, arrays))

    def contents(self, row: int) -> list[RowPiece]:
        """The documents of a row."""
        return drawn_contents([source.name for source in self._sources], self._draws, self._pieces, row)

    @property
    def tokens_by_source(self) -> dict[str, int]:
        """Tokens of each source in the rows."""
        sources = self._draws.source[self._pieces.doc]
        counts = np.bincount(sources, weights=self._pieces.length, minlength=len(self._sources))
        return {source.name: int(count) for source, count in zip(self._sources, counts, strict=True)}

    @property
    def epochs_by_source(self) -> dict[str, float]:
        """How often the rows go through the documents of each source."""
        used = self._draws.source[np.unique(self._pieces.doc)]
        counts = np.bincount(used, minlength=len(self._sources))
        return {
            source.name: float(count) / len(source.shards) for source, count in zip(self._sources, counts, strict=True)
        }

    @property
    def num_documents(self) -> int:
        """Documents in the rows, each time counted that one is drawn."""
        return len(np.unique(self._pieces.doc))

    @property
    def num_split_documents(self) -> int:
        """Documents that do not lie whole in one row."""
        pieces = self._pieces
        return len(np.unique(pieces.doc[pieces.length != self._draws.length[pieces.doc]]))

    @property
    def num_lost_tokens(self) -> int:
        """Tokens beyond a row of the drawn documents that were truncated or dropped; 0 where they are split."""
        return self._pieces.num_lost_tokens

    @property
    def padding_fraction(self) -> float:
        """Share of the rows that holds no document, 0 to 1."""
        return 1.0 - int(self._pieces.length.sum(dtype=np.uint64)) / (len(self) * self.capacity)


def check_mixture(sources: Sequence[Source], seed: int) -> None:
    """Raise unless the sources can be mixed.

    Raises:
        DataError: They are of different vocabulary sizes, or the seed is out of range.
    """
    if not 0 <= seed < 2**64:
        raise DataError(f"seed is {seed}, it must be from 0 to 2^64 - 1")
    sizes = {source.name: source.shards.vocab_size for source in sources}
    if len(set(sizes.values())) > 1:
        raise DataError(f"sources of different vocabulary sizes cannot be mixed: {sizes}")


def _draw(sources: Sequence[Source], seed: int, min_tokens: int) -> CoreDraws:
    names = [source.name for source in sources]
    weights = [source.weight for source in sources]
    return draw(names, weights, [source.shards.core for source in sources], seed, min_tokens, [])


def _draw_rows(sources: Sequence[Source], seed: int, capacity: int, num_rows: int, too_long: TooLong) -> CoreDraws:
    """Documents that fill the rows, whatever is lost of those longer than a row."""
    min_tokens = num_rows * capacity
    while True:
        draws = _draw(sources, seed, min_tokens)
        if too_long == "split" or pack_documents(draws.length, capacity, too_long=too_long).num_rows >= num_rows:
            return draws
        if min_tokens >= MAX_LOSS * num_rows * capacity:
            raise PackingError(
                f"with too_long={too_long!r} less than one token in {MAX_LOSS} is left in rows of {capacity}"
            )
        min_tokens *= 2


def _best_fit(lengths: npt.NDArray[np.uint32], capacity: int, num_rows: int, too_long: TooLong) -> Pieces:
    """The most documents, in the order drawn, that best fit packs into `num_rows` rows.

    The documents given fill that many rows or more. Taking fewer of them, rather than dropping rows of all,
    keeps the shares of the sources. Rows rise with the documents but for rare anomalies, so the end is found
    by growing steps down from all documents, the first as long as the rows too many, and bisecting.
    """

    def pack(count: int) -> Pieces:
        return pack_documents(lengths[: max(0, count)], capacity, too_long=too_long)

    pieces = pack(len(lengths))
    if pieces.num_rows == num_rows:
        return pieces
    too_many = len(lengths)
    step = max(1, too_many * (pieces.num_rows - num_rows) // pieces.num_rows)
    while (fewer := pack(too_many - step)).num_rows > num_rows:
        pieces, too_many, step = fewer, too_many - step, 2 * step
    fit = max(0, too_many - step)
    while too_many - fit > 1:
        middle = (fit + too_many) // 2
        tried = pack(middle)
        if tried.num_rows > num_rows:
            pieces, too_many = tried, middle
        else:
            fewer, fit = tried, middle
    return fewer if fewer.num_rows == num_rows else pieces  # one document can add several rows


def _fullest(pieces: Pieces, num_rows: int) -> npt.NDArray[np.uint32]:
    """The fullest rows, in rising order."""
    tokens = np.add.reduceat(pieces.length, pieces.row_offsets[:-1].astype(np.intp), dtype=np.int64)
    return np.sort(np.argsort(-tokens, kind="stable")[:num_rows]).astype(np.uint32)
