"""From the parts of a step to the hidden states that the next tokens are drawn from.

Shapes: T tokens of a step, S parts that sequences draw after, D hidden size.
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
    """

    def __init__(self, model: Glm, num_blocks: int) -> None:
        self.model = model
        self.num_blocks = num_blocks
        self.caches: list[PagedCache] = []
        self.wake()

    def wake(self) -> None:
        """Have memory for keys and values; what it holds is undefined."""
        if not self.caches:
            like = self.model.lm_head.weight
            layers = range(self.model.config.num_hidden_layers)
            self.caches = [PagedCache.empty(self.model.config, self.num_blocks, like) for _ in layers]

    def sleep(self) -> None:
        """Give the memory of keys and values back."""
        self.caches = []

    @torch.no_grad()
    def logits(self, parts: Sequence[Part]) -> Tensor:
        """Compute the parts; gives the scores after each part that has members, float32 or wider [S, V]."""
        device = self.model.lm_head.weight.device
        counts = np.array([len(part.tokens) for part in parts])
        bounds = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        tables = np.zeros((len(parts), max(len(part.blocks) for part in parts)), np.int32)
        for row, part in enumerate(parts):
            tables[row, : len(part.blocks)] = part.blocks
        lengths = np.array([part.length for part in parts], np.int32)
        layout = PagedLayout(bounds, lengths, tables, device)
        ids = torch.from_numpy(np.concatenate([np.asarray(part.tokens, np.int64) for part in parts])).to(device)
        positions = torch.from_numpy(layout.positions).to(device)
        hidden = self.model(ids, positions, layout, caches=self.caches).hidden
        last = [bounds[row + 1] - 1 for row, part in enumerate(parts) if part.members]
        return self.model.logits(hidden[torch.tensor(last, dtype=torch.int64, device=device)])

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Make the second block of each pair a copy of the first, in all layers."""
        if pairs:
            source, target = torch.tensor(pairs, device=self.model.lm_head.weight.device).unbind(1)
            for cache in self.caches:
                cache.copy_blocks(source, target)
