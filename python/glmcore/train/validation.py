"""The loss on documents that nothing is trained on."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glmcore.data.loader import PackedRows, Source
from glmcore.data.prefetch import Rows
from glmcore.model.glm import Glm
from glmcore.model.parallel.ranks import Ranks
from glmcore.train.config import StageConfig, ValidationConfig
from glmcore.train.loss import CHUNK_TOKENS, IGNORED
from glmcore.train.step import run_batch


class Validation:
    """Fixed rows of held-out documents of each source of a stage."""

    def __init__(self, rows: Mapping[str, Rows], num_rows: Mapping[str, int], rows_per_batch: int) -> None:
        """Take rows.

        Args:
            rows: Rows of each source.
            num_rows: How many of them.
            rows_per_batch: Rows in a rank's memory at once.
        """
        self._rows = dict(rows)
        self._num_rows = dict(num_rows)
        self._rows_per_batch = rows_per_batch

    @classmethod
    def of(cls, config: ValidationConfig, stage: StageConfig, held_out: Sequence[Source], pad_id: int) -> "Validation":
        """Pack the held-out documents of some sources, as long as there are any, best-fit into rows of the stage."""
        capacity = stage.sequence_length
        num_rows = {s.name: min(config.max_rows, -(-s.shards.num_tokens // capacity)) for s in held_out}
        rows = {
            source.name: PackedRows(
                [source], capacity=capacity, num_rows=num_rows[source.name], packing="best_fit", seed=0, pad_id=pad_id
            )
            for source in held_out
        }
        return cls(rows, num_rows, stage.rows_per_micro_batch or config.max_rows)

    def losses(self, model: Glm, ranks: Ranks) -> dict[str, float]:
        """Mean next-token cross-entropy in nats of each source, over the tokens with a loss; the same on all ranks.

        Every data rank takes its share of the rows, and all of them run the same number of batches.
        """
        return {name: self._loss(model, rows, self._num_rows[name], ranks) for name, rows in self._rows.items()}

    @torch.no_grad()
    def _loss(self, model: Glm, rows: Rows, num_rows: int, ranks: Ranks) -> float:
        data = ranks.axis("data")
        share = -(-num_rows // data.size)
        loss, num_labels = 0.0, 0
        for start in range(data.rank * share, (data.rank + 1) * share, self._rows_per_batch):
            count = min(self._rows_per_batch, (data.rank + 1) * share - start, num_rows - start)
            batch = rows.batch(start, count) if count > 0 else rows.batch(0, 1)
            output, _ = run_batch(model, batch, with_mtp=False)
            if count > 0:
                labels = torch.from_numpy(batch.labels.astype(np.int64))
                loss += _sum_of_losses(output.hidden, model.lm_head.weight, labels)
                num_labels += int((batch.labels != IGNORED).sum())
        return ranks.sum(loss) / max(ranks.sum(num_labels), 1)


def _sum_of_losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> float:
    """Sum of the cross-entropies, in float32 or wider, without the logits of all tokens at once."""
    total = 0.0
    for start in range(0, len(labels), CHUNK_TOKENS):
        chunk = slice(start, start + CHUNK_TOKENS)
        logits = (hidden[chunk] @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
        total += float(F.cross_entropy(logits, labels[chunk], ignore_index=IGNORED, reduction="sum"))
    return total
