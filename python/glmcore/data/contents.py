"""Which documents a row of packed tokens holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from glmcore._core import CoreDraws
from glmcore.packing import Pieces


@dataclass(frozen=True)
class RowPiece:
    """A stretch of a document in a row."""

    source: str
    """Name of its source, with the quality bucket if there are any."""
    document: int
    """Number among the documents of that source."""
    first_token: int
    """Where in the document it begins."""
    num_tokens: int


def drawn_contents(names: Sequence[str], draws: CoreDraws, pieces: Pieces, row: int) -> list[RowPiece]:
    """Pieces of a packed row, in order.

    Args:
        names: Names of the sources.
        draws: The documents that were packed.
        pieces: How they were packed.
        row: Number of the row in `pieces`.
    """
    start, stop = pieces.row_offsets[row : row + 2].tolist()
    drawn = pieces.doc[start:stop]
    sources, documents = draws.source[drawn].tolist(), draws.document[drawn].tolist()
    firsts, lengths = pieces.start[start:stop].tolist(), pieces.length[start:stop].tolist()
    return [
        RowPiece(names[int(source)], document, first, length)
        for source, document, first, length in zip(sources, documents, firsts, lengths, strict=True)
    ]
