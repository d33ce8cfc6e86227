"""How the tokens of a packed batch are shared out to ranks, each with as much work as the others.

Shapes: T tokens, N documents, C ranks.

A token's attention costs the keys that it sees: its place in the document plus one. In a document of L tokens the one
at place p and the one at L - 1 - p see L + 1 keys together, whatever p is. So a document is handed out from both of its
ends: its tokens in the order 0, L - 1, 1, L - 2, ... cost (L + 1) / 2 each on average over every stretch of them, and
how many tokens of a document a rank has decides its work there, not which.

What is left is to choose those numbers. Documents of at least `BLOCK` tokens a rank are divided by C. All others, and
the rests of that division, are laid end to end, the longest first, and cut into blocks of `BLOCK` tokens, which are
dealt to the ranks in rounds: of the next C blocks the dearest goes to the rank with the least work so far. All ranks
have T / C tokens exactly, and no document is cut into more than two stretches a rank.
For a single long document this is the usual split of a causal mask (Llama 3 report, arXiv:2407.21783, section 3.3.2:
of 2 C chunks rank r has the r-th and the r-th from the end); packed documents that the usual split would leave to
few ranks are evened out too.
"""

from dataclasses import dataclass

import numpy as np

from glmcore.errors import ConfigError

BLOCK = 128
"""Tokens that are dealt at once: a tile of queries of the attention kernels, so short documents mostly stay whole."""


@dataclass(frozen=True)
class Share:
    """The tokens of one rank, as runs that are each consecutive in one document."""

    starts: np.ndarray
    """First token of each run in the batch, ascending, int64 [runs]."""
    ends: np.ndarray
    """Token after the last of each run, int64 [runs]."""
    document: np.ndarray
    """Document of each run, int64 [runs]."""

    @property
    def tokens(self) -> np.ndarray:
        """Places of the rank's tokens in the batch, ascending, int64 [T / C]."""
        lengths = self.ends - self.starts
        shift = np.repeat(self.starts - (np.cumsum(lengths) - lengths), lengths)
        return np.arange(lengths.sum()) + shift


def share_tokens(cu_seqlens: np.ndarray, num_ranks: int) -> list[Share]:
    """Share out the tokens of a packed batch, the same for every caller.

    Work is the number of keys that a rank's queries see, summed. Of any two ranks it differs by at most
    `C * BLOCK**2 / 2`, the cost of the dearest block of short documents, plus `(C + 1) * (L + 1) / 2` for each document
    that several ranks share.

    Args:
        cu_seqlens: Bounds of the documents, int [N + 1], from 0 to T.
        num_ranks: C.

    Returns:
        One share a rank.

    Raises:
        ConfigError: C does not divide T.
    """
    bounds = cu_seqlens.astype(np.int64)
    lengths = np.diff(bounds)
    num_tokens = int(bounds[-1])
    if num_tokens % num_ranks:
        raise ConfigError(
            f"{num_tokens} tokens of a micro-batch cannot be shared out evenly to parallel.context={num_ranks} ranks: "
            "make sequence_length a multiple of it"
        )
    counts = _deal(lengths, num_ranks)
    offsets = np.cumsum(counts, axis=0) - counts  # tokens of the document that the ranks before have, [C, N]
    return [_runs(bounds[:-1], lengths, first, first + count) for first, count in zip(offsets, counts, strict=True)]


def _deal(lengths: np.ndarray, num_ranks: int) -> np.ndarray:
    """Tokens of each document that each rank has, int64 [C, N]."""
    equal = np.where(lengths >= num_ranks * BLOCK, lengths // num_ranks, 0)
    dealt_out = lengths - num_ranks * equal
    order = np.argsort(-lengths, kind="stable")
    document_ends = np.cumsum(dealt_out[order])
    per_rank = int(dealt_out.sum()) // num_ranks
    sizes = np.full(-(-per_rank // BLOCK), BLOCK)  # of the blocks of a round; the last round takes what is left
    if len(sizes):
        sizes[-1] = per_rank - BLOCK * (len(sizes) - 1)
    block_ends = np.cumsum(np.repeat(sizes, num_ranks))

    # Between two neighbouring bounds of blocks or documents everything is of one block and one document.
    piece_ends = np.union1d(document_ends, block_ends)
    piece_ends = piece_ends[piece_ends > 0]
    pieces = np.diff(piece_ends, prepend=0)
    block = np.searchsorted(block_ends, piece_ends)
    place = order[np.searchsorted(document_ends, piece_ends)]
    cost = np.zeros(len(block_ends))
    np.add.at(cost, block, pieces * (lengths[place] + 1) / 2)

    work = np.zeros(num_ranks)
    rank_of_block = np.empty((len(sizes), num_ranks), np.int64)
    for dealt, costs in zip(rank_of_block, cost.reshape(-1, num_ranks), strict=True):  # costs descend
        dealt[:] = np.argsort(work, kind="stable")
        work[dealt] += costs
    counts = np.tile(equal, (num_ranks, 1))
    np.add.at(counts, (rank_of_block.reshape(-1)[block], place), pieces)
    return counts


def _runs(starts: np.ndarray, lengths: np.ndarray, first: np.ndarray, last: np.ndarray) -> Share:
    """Entries `first` up to `last` of each document's order 0, L - 1, 1, L - 2, ... as runs of the batch."""
    front = np.stack((starts + (first + 1) // 2, starts + (last + 1) // 2))
    ends = starts + lengths
    back = np.stack((ends - last // 2, ends - first // 2))
    # The two stretches of the rank that has the middle of a document meet there: they are one run.
    meet = front[1] == back[0]
    front[1] = np.where(meet, back[1], front[1])
    back[0] = np.where(meet, back[1], back[0])
    document = np.arange(len(starts))
    runs = np.concatenate((front, back), axis=1)
    runs, document = runs[:, runs[0] < runs[1]], np.tile(document, 2)[runs[0] < runs[1]]
    in_order = np.argsort(runs[0])
    return Share(runs[0, in_order], runs[1, in_order], document[in_order])
