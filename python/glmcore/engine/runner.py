"""From the parts of a step to the hidden states that the next tokens are drawn from.

Shapes: T tokens of a step, S places that tokens are drawn or verified at, D hidden size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glmcore.engine.sequence import Part
from glmcore.model.glm import Glm
from glmcore.model.paged import PagedCache, PagedLayout


class Runner:
    """Runs a model on the parts of steps. Holds the keys and values of its layers.

    Args:
        model: The model.
        num_blocks: Blocks of the cache.
        with_mtp: Also hold those of the MTP layer, as the last.
    """

    def __init__(self, model: Glm, num_blocks: int, *, with_mtp: bool = False) -> None:
        self.model = model
        self.num_blocks = num_blocks
        self.with_mtp = with_mtp
        self.caches: list[PagedCache] = []
        self.wake()

    def wake(self) -> None:
        """Have memory for keys and values; what it holds is undefined."""
        if not self.caches:
            like = self.model.lm_head.weight
            layers = range(self.model.config.num_hidden_layers + self.with_mtp)
            self.caches = [PagedCache.empty(self.model.config, self.num_blocks, like) for _ in layers]

    def sleep(self) -> None:
        """Give the memory of keys and values back."""
        self.caches = []

    @torch.no_grad()
    def hidden(self, parts: Sequence[Part]) -> Tensor:
        """Compute the parts; gives the state of each of their tokens, [T, D]."""
        device = self.model.lm_head.weight.device
        layout = layout_of([(len(part.tokens), part.length, part.blocks) for part in parts], device)
        ids = torch.from_numpy(np.concatenate([np.asarray(part.tokens, np.int64) for part in parts])).to(device)
        positions = torch.from_numpy(layout.positions).to(device)
        return self.model(ids, positions, layout, caches=self.caches).hidden

    @torch.no_grad()
    def logits(self, parts: Sequence[Part], hidden: Tensor) -> Tensor:
        """Scores after the last tokens of each part, as many as it needs, float32 or wider [S, V]."""
        ends = np.cumsum([len(part.tokens) for part in parts])
        places = [np.arange(end - part.num_scores, end) for part, end in zip(parts, ends, strict=True)]
        return self.model.logits(hidden[torch.from_numpy(np.concatenate(places)).to(hidden.device)])

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Make the second block of each pair a copy of the first, in all layers."""
        if pairs:
            source, target = torch.tensor(pairs, device=self.model.lm_head.weight.device).unbind(1)
            for cache in self.caches:
                cache.copy_blocks(source, target)


def layout_of(rows: Sequence[tuple[int, int, Sequence[int]]], device: torch.device) -> PagedLayout:
    """Layout of the last tokens of sequences: for each how many, its length with them, and its blocks."""
    bounds = np.concatenate(([0], np.cumsum([count for count, _, _ in rows]))).astype(np.int32)
    tables = np.zeros((len(rows), max(len(blocks) for _, _, blocks in rows)), np.int32)
    for row, (_, _, blocks) in enumerate(rows):
        tables[row, : len(blocks)] = blocks
    return PagedLayout(bounds, np.array([length for _, length, _ in rows], np.int32), tables, device)
