"""Shards to the ranks that orthogonalise whole matrices, and shards of the result back.

A round is two all-to-alls: the pieces of its matrices go to their owners, and the pieces of the results come back. So
a rank sends and receives each element of its shards once, and the matrices that it owns; to gather every matrix
everywhere it would receive all elements of the model.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from glmcore.model.parallel.placement import Box
from glmcore.train.assignment import Unit, nearest, sources


@dataclass(frozen=True)
class _Piece:
    """A part of a unit that one peer holds."""

    unit: Unit
    box: Box


_Pieces = list[list[_Piece]]
"""For each peer, in the order of a buffer."""


@dataclass
class _Round:
    """What this rank does in one round."""

    outgoing: _Pieces
    """Pieces of this rank's shards, to their owners."""
    incoming: _Pieces
    """Pieces of the units that this rank owns, each from one of those that hold it."""
    answers: _Pieces
    """Pieces of its results, to all that hold them."""
    replies: _Pieces
    """Pieces of others' results, for this rank's shards."""
    owned: list[Unit] = field(default_factory=list)


class Exchange:
    """The rounds of one set of matrices.

    Args:
        units: All units of all peers of which anything has to be sent.
        held: What each peer holds of every parameter, as a box of [S, R, C].
        peer: This rank's place among the peers.
        group: The peers.
        dtype: Type in which elements travel and are orthogonalised.
        round_elements: Elements that a rank owns in one round, if that is a whole unit.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        held: Mapping[str, Sequence[Box]],
        *,
        peer: int,
        group: dist.ProcessGroup,
        dtype: torch.dtype,
        round_elements: int,
    ) -> None:
        self.held = held
        self.peer = peer
        self.group = group
        self.dtype = dtype
        self.sent_elements = 0
        """Elements that this rank has sent to others so far."""
        holders = {name: sources(held[name]) for name in {unit.name for unit in units}}
        self._rounds = [self._plan(part, holders) for part in _rounds(units, round_elements)]

    def run(self, shards: Mapping[str, Tensor], orthogonalize: Callable[[list[tuple[str, Tensor]]], None]) -> None:
        """Replace this rank's shards by those of the orthogonalised matrices.

        Args:
            shards: [s, r, c] by parameter, possibly empty; parameters that are missing, on all peers, are left out.
            orthogonalize: Replaces whole slabs, given with the names of their parameters, in place.
        """
        if not shards:
            return
        device = next(iter(shards.values())).device
        for part in self._rounds:
            owned = [unit for unit in part.owned if unit.name in shards]
            buffers = {unit: torch.empty(unit.box.size, dtype=self.dtype, device=device) for unit in owned}

            def in_shard(piece: _Piece) -> Tensor:
                name = piece.unit.name
                return shards[name][piece.box.slices_from(self.held[name][self.peer].start)]

            def in_unit(piece: _Piece, buffers: Mapping[Unit, Tensor] = buffers) -> Tensor:
                return buffers[piece.unit][piece.box.slices_from(piece.unit.box.start)]

            outgoing, incoming, answers, replies = (
                _only(pieces, shards) for pieces in (part.outgoing, part.incoming, part.answers, part.replies)
            )
            self._swap(outgoing, in_shard, incoming, in_unit, device)
            orthogonalize([(unit.name, buffer) for unit, buffer in buffers.items()])
            self._swap(answers, in_unit, replies, in_shard, device)

    def _swap(
        self,
        outgoing: _Pieces,
        origin: Callable[[_Piece], Tensor],
        incoming: _Pieces,
        place: Callable[[_Piece], Tensor],
        device: torch.device,
    ) -> None:
        """Send pieces to every peer and put those that come from them in their places."""
        out_sizes, in_sizes = _sizes(outgoing), _sizes(incoming)
        sent = torch.empty(sum(out_sizes), dtype=self.dtype, device=device)
        for piece, buffer in _cut(sent, outgoing):
            buffer.copy_(origin(piece))
        received = torch.empty(sum(in_sizes), dtype=self.dtype, device=device)
        dist.all_to_all_single(received, sent, in_sizes, out_sizes, group=self.group)
        self.sent_elements += sum(out_sizes) - out_sizes[self.peer]
        for piece, buffer in _cut(received, incoming):
            place(piece).copy_(buffer)

    def _plan(self, units: Sequence[Unit], holders: Mapping[str, Mapping[Box, list[int]]]) -> _Round:
        num_peers = dist.get_world_size(self.group)
        outgoing, incoming, answers, replies = ([[] for _ in range(num_peers)] for _ in range(4))
        plan = _Round(outgoing, incoming, answers, replies)
        for unit in units:
            mine = self.held[unit.name][self.peer]
            own = unit.box.intersect(mine)
            if own is not None:
                replies[unit.owner].append(_Piece(unit, own))
                if nearest(holders[unit.name][mine], unit.owner) == self.peer:
                    outgoing[unit.owner].append(_Piece(unit, own))
            if unit.owner != self.peer:
                continue
            plan.owned.append(unit)
            for box, peers in holders[unit.name].items():
                piece = unit.box.intersect(box)
                if piece is not None:
                    incoming[nearest(peers, unit.owner)].append(_Piece(unit, piece))
                    for peer in peers:
                        answers[peer].append(_Piece(unit, piece))
        return plan


def _rounds(units: Sequence[Unit], round_elements: int) -> list[list[Unit]]:
    """Cut the units of every owner into rounds of at most `round_elements`, with all owners at work in each."""
    rounds: defaultdict[int, list[Unit]] = defaultdict(list)
    index: defaultdict[int, int] = defaultdict(int)
    size: defaultdict[int, int] = defaultdict(int)
    for unit in units:
        owner = unit.owner
        if size[owner] and size[owner] + unit.box.numel > round_elements:
            index[owner], size[owner] = index[owner] + 1, 0
        size[owner] += unit.box.numel
        rounds[index[owner]].append(unit)
    return [rounds[number] for number in sorted(rounds)]


def _only(pieces: _Pieces, names: Collection[str]) -> _Pieces:
    return [[piece for piece in of_peer if piece.unit.name in names] for of_peer in pieces]


def _sizes(pieces: _Pieces) -> list[int]:
    return [sum(piece.box.numel for piece in of_peer) for of_peer in pieces]


def _cut(buffer: Tensor, pieces: _Pieces) -> Iterator[tuple[_Piece, Tensor]]:
    """Each piece and its part of a buffer."""
    flat = [piece for of_peer in pieces for piece in of_peer]
    for piece, part in zip(flat, buffer.split([piece.box.numel for piece in flat]), strict=True):
        yield piece, part.view(piece.box.size)
