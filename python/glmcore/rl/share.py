"""The samples of a batch that one of several ranks computes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from glmcore.model.parallel.ranks import Axis


@dataclass(frozen=True)
class MicroBatch:
    """Samples whose logits are in memory at once."""

    index: np.ndarray
    """Their places in the batch, int [n], n > 0."""
    counts: bool = True
    """False where a rank has none left and only takes part in the work of the others: the result is of no use."""


class Share:
    """Ranks take turns along a batch. All compute as many micro-batches, since they gather weights for each together.

    Args:
        axis: This rank among those that take different samples.
    """

    def __init__(self, axis: Axis = Axis()) -> None:  # noqa: B008 (frozen)
        self.axis = axis

    def micro_batches(self, sizes: Sequence[int], most: int) -> list[MicroBatch]:
        """Those of this rank, for a batch of samples of `sizes` tokens.

        A micro-batch is closed where one more sample would make more than `most` tokens of it.
        """
        ranks = [_cut(sizes, range(rank, len(sizes), self.axis.size), most) for rank in range(self.axis.size)]
        own, longest = ranks[self.axis.rank], max(map(len, ranks))
        nothing = MicroBatch(np.zeros(1, np.int64), counts=False)
        return [MicroBatch(np.array(part)) for part in own] + [nothing] * (longest - len(own))

    def sum(self, figures: dict[str, float]) -> dict[str, float]:
        """Figures added up over the ranks."""
        if self.axis.group is None:
            return figures
        names = sorted(figures)
        values = torch.tensor([figures[name] for name in names], dtype=torch.float64)
        dist.all_reduce(values, group=self.axis.group)
        return dict(zip(names, values.tolist(), strict=True))

    def collect(self, parts: Sequence[Tensor | None]) -> list[Tensor]:
        """All parts, each from the rank that has it."""
        if self.axis.group is None:
            return [part for part in parts if part is not None]
        told: list[Any] = [None] * self.axis.size
        dist.all_gather_object(told, [None if part is None else part.cpu() for part in parts], group=self.axis.group)
        return [next(of_rank[place] for of_rank in told if of_rank[place] is not None) for place in range(len(parts))]


def _cut(sizes: Sequence[int], places: Sequence[int], most: int) -> list[list[int]]:
    parts: list[list[int]] = []
    tokens = 0
    for place in places:
        if not parts or tokens + sizes[place] > most:
            parts.append([])
            tokens = 0
        parts[-1].append(place)
        tokens += sizes[place]
    return parts


ALONE = Share()
"""One rank computes all."""
