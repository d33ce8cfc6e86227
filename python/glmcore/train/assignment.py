"""Which rank orthogonalises which matrices, where a matrix may lie in shards on many ranks.

Every rank makes the same plan from what the ranks hold, so nothing has to be agreed on at run time.

Shapes: a parameter is a stack of S slabs of R rows and C columns, [S, R, C] or, with S = 1, [R, C]. A slab is cut into
`parts` matrices of R / parts rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from glmcore.errors import ConfigError
from glmcore.model.parallel.placement import Box


@dataclass(frozen=True)
class Stack:
    """The matrices of one parameter."""

    shape: tuple[int, int, int]
    """S, R, C."""
    parts: int = 1
    """Matrices of one slab, one below the other."""

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of each matrix."""
        return self.shape[1] // self.parts, self.shape[2]


@dataclass(frozen=True)
class Unit:
    """Consecutive slabs of one parameter that one rank orthogonalises."""

    name: str
    box: Box
    """Where they lie in [S, R, C]."""
    owner: int
    """The rank, as its place among the peers."""
    is_local: bool
    """True where the owner holds all of it and nobody else any part: nothing has to be sent."""


def assign(stacks: Mapping[str, Stack], held: Mapping[str, Sequence[Box]], num_peers: int) -> list[Unit]:
    """Give every matrix one owner, so that all have about the same work.

    A rank that holds matrices whole keeps them, and ranks that hold the same whole ones share them; matrices that
    lie in shards go to any rank. Costliest first, each to the rank with the least work so far, the earlier on a tie.

    Args:
        stacks: The matrices by parameter.
        held: What each peer holds of every parameter, as a box of [S, R, C].
        num_peers: Ranks to share the work.

    Returns:
        Units in the order of `stacks`, then of slabs.

    Raises:
        ConfigError: The parts that the peers hold do not make up a parameter.
    """
    choices: list[tuple[str, Box, list[int]]] = []
    for name, stack in stacks.items():
        choices += [(name, box, candidates) for box, candidates in _units_of(name, stack, held[name], num_peers)]
    costs = [_cost(stacks[name], box) for name, box, _ in choices]
    work = np.zeros(num_peers)
    owner = [-1] * len(choices)
    # Those that have no choice first: the others can be laid around them.
    for index in sorted(range(len(choices)), key=lambda i: (len(choices[i][2]) > 1, -costs[i], i)):
        candidates = choices[index][2]
        owner[index] = candidates[int(np.argmin(work[candidates]))]
        work[owner[index]] += costs[index]
    # A single candidate is the only holder: where there are several, all are candidates.
    return [
        Unit(name, box, owner[index], is_local=len(candidates) == 1)
        for index, (name, box, candidates) in enumerate(choices)
    ]


def sources(held: Sequence[Box]) -> dict[Box, list[int]]:
    """The peers that hold exactly each part of a parameter."""
    holders: dict[Box, list[int]] = {}
    for peer, box in enumerate(held):
        if box.numel:
            holders.setdefault(box, []).append(peer)
    return holders


def nearest(holders: Sequence[int], owner: int) -> int:
    """Of the peers that hold the same part, the one that sends it to `owner`: the nearest in number.

    Replicas of a model are numbered one after the other, so that is the replica of the owner.
    """
    return min(holders, key=lambda peer: (abs(peer - owner), peer))


def _units_of(name: str, stack: Stack, held: Sequence[Box], num_peers: int) -> list[tuple[Box, list[int]]]:
    """Parts of a parameter that are orthogonalised together, and the peers that may do it."""
    slabs, rows, columns = stack.shape
    holders = sources(held)
    parts = sorted(holders, key=lambda box: box.start)
    if sum(box.numel for box in parts) != slabs * rows * columns or _overlap(parts):
        raise ConfigError(f"the shards of {name!r} do not make up the whole: its placements are not supported by Muon")
    if all(box.size[1:] == (rows, columns) for box in parts):
        units: list[tuple[Box, list[int]]] = []
        for box in parts:
            units += [(piece, holders[box]) for piece in _split(box, len(holders[box]))]
        return units
    return [(piece, list(range(num_peers))) for piece in _split(Box((0, 0, 0), stack.shape), num_peers)]


def _overlap(parts: Sequence[Box]) -> bool:
    return any(a.intersect(b) is not None for a, b in pairwise(parts))


def _split(box: Box, count: int) -> list[Box]:
    """Cut a box into `count` runs of slabs, or as many as it has."""
    bounds = np.linspace(0, box.size[0], min(count, box.size[0]) + 1).astype(int).tolist()
    return [Box((box.start[0] + a, *box.start[1:]), (b - a, *box.size[1:])) for a, b in pairwise(bounds)]


def _cost(stack: Stack, box: Box) -> float:
    """Multiplications of a Newton-Schulz step: `x x^T`, its square and the product with x."""
    short, long = sorted(stack.matrix)
    return box.size[0] * stack.parts * short * short * (2.0 * long + short)
