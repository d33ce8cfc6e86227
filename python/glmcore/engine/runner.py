"""From the parts of a step to the hidden states that the next tokens are drawn from.

Shapes: T tokens of a step, S of them that tokens are drawn or verified after, D hidden size, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glmcore.engine.expert_record import ExpertRecord
from glmcore.engine.sequence import Part
from glmcore.model.decode_ops import DecodeModel
from glmcore.model.glm import Glm
from glmcore.model.paged import PagedCache, PagedLayout


class Runner:
    """Runs a model on the parts of steps. Holds the keys and values of its layers.

    Args:
        model: The model.
        num_blocks: Blocks of the cache.
        with_mtp: Also hold the keys and values of the MTP layer, as the last.
        record_experts: Also hold which experts the tokens chose.
    """

    def __init__(self, model: Glm, num_blocks: int, *, with_mtp: bool = False, record_experts: bool = False) -> None:
        self.model = model
        self.device = model.lm_head.weight.device
        self.num_blocks = num_blocks
        self.with_mtp = with_mtp
        self.core = DecodeModel(model) if DecodeModel.is_supported(model) else None
        """Runs the steps where it can, the modules of the model elsewhere."""
        self.record = ExpertRecord(model, num_blocks) if record_experts else None
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
    def run(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor | None]:
        """Compute the parts.

        Returns:
            Scores after the last tokens of each part, as many as it needs, float32 or wider [S, V]; and, with the MTP
            layer, the hidden state of every token, [T, D].
        """
        layout = layout_of([(len(part.tokens), part.length, part.blocks) for part in parts], self.device)
        ids = np.array([token for part in parts for token in part.tokens], np.int32)
        if all(part.prefill is None for part in parts):  # each token is followed by one that is drawn or verified
            scored = np.arange(len(ids), dtype=np.int32)
        else:
            ends = zip(parts, layout.cu_queries[1:].tolist(), strict=True)
            scored = np.array([row for part, end in ends for row in range(end - part.num_scores, end)], np.int32)
        wanted = np.arange(len(ids), dtype=np.int32) if self.with_mtp else scored
        caches = self.caches[: self.model.config.num_hidden_layers]
        if self.core is not None:
            chosen = None if self.record is None else self.record.room(len(ids))
            hidden = self.core.hidden(ids, layout, wanted, caches, chosen)
            if self.record is not None and chosen is not None:
                self.record.write(layout, chosen)
        else:
            positions = torch.from_numpy(layout.positions).to(self.device)
            tokens = torch.from_numpy(ids).long().to(self.device)
            output = self.model(tokens, positions, layout, caches=caches)
            if self.record is not None:
                self.record.write(layout, torch.stack([each.expert for each in output.routings], 1).cpu().numpy())
            hidden = output.hidden
            hidden = hidden if self.with_mtp else hidden[torch.from_numpy(wanted).long().to(self.device)]
        if not self.with_mtp:
            return self.scores(hidden), None
        return self.scores(hidden[torch.from_numpy(scored).long().to(self.device)]), hidden

    @torch.no_grad()
    def scores(self, hidden: Tensor) -> Tensor:
        """Scores of the next tokens from hidden states [S, D], float32 or wider [S, V]."""
        return self.core.logits(hidden) if self.core is not None else self.model.logits(hidden)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Make the second block of each pair a copy of the first, in all layers."""
        if pairs:
            source, target = torch.tensor(pairs, device=self.device).unbind(1)
            for cache in self.caches:
                cache.copy_blocks(source, target)
            if self.record is not None:
                self.record.copy_blocks(pairs)


def layout_of(rows: Sequence[tuple[int, int, Sequence[int]]], device: torch.device) -> PagedLayout:
    """Layout of the last tokens of sequences: for each how many, its length with them, and its blocks."""
    bounds = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([count for count, _, _ in rows], out=bounds[1:])
    width = max(len(blocks) for _, _, blocks in rows)
    tables = np.array([[*blocks, *[0] * (width - len(blocks))] for _, _, blocks in rows], np.int32)
    return PagedLayout(bounds, np.array([length for _, length, _ in rows], np.int32), tables, device)
