"""From the parts of a step to the hidden states that the next tokens are drawn from.

Shapes: T tokens of a step, S parts that sequences draw after, D hidden size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glmcore.engine.sequence import Part
from glmcore.model.decode_ops import DecodeModel
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
        self.device = model.lm_head.weight.device
        self.num_blocks = num_blocks
        self.core = DecodeModel(model) if DecodeModel.is_supported(model) else None
        """Runs the steps where it can, the modules of the model elsewhere."""
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
        bounds = np.zeros(len(parts) + 1, np.int32)
        np.cumsum([len(part.tokens) for part in parts], out=bounds[1:])
        tables = np.zeros((len(parts), max(len(part.blocks) for part in parts)), np.int32)
        for row, part in enumerate(parts):
            tables[row, : len(part.blocks)] = part.blocks
        lengths = np.array([part.length for part in parts], np.int32)
        layout = PagedLayout(bounds, lengths, tables, self.device)
        ids = np.fromiter((token for part in parts for token in part.tokens), np.int32, bounds[-1])
        rows = bounds[1:][[bool(part.members) for part in parts]] - 1
        if self.core is not None:
            return self.core.logits(self.core.hidden(ids, layout, rows, self.caches))
        positions = torch.from_numpy(layout.positions).to(self.device)
        tokens = torch.from_numpy(ids).long().to(self.device)
        hidden = self.model(tokens, positions, layout, caches=self.caches).hidden
        return self.model.logits(hidden[torch.from_numpy(rows).long().to(self.device)])

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Make the second block of each pair a copy of the first, in all layers."""
        if pairs:
            source, target = torch.tensor(pairs, device=self.device).unbind(1)
            for cache in self.caches:
                cache.copy_blocks(source, target)
