"""Attention with all of its scores in memory."""

import torch
from torch import Tensor


def attention_of_runs(query: Tensor, key: Tensor, value: Tensor, num_queries: list[int], num_keys: list[int]) -> Tensor:
    """Attention of each run by the definition, [t, H, C]; see `glmcore.model.runs`."""
    parts = []
    repeats = query.shape[1] // key.shape[1]
    pieces = zip(*(x.split(n) for x, n in ((query, num_queries), (key, num_keys), (value, num_keys))), strict=True)
    for q, k, v in pieces:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = torch.einsum("qhc,khc->hqk", q, k) / q.shape[-1] ** 0.5
        hidden = torch.ones(len(q), len(k), dtype=torch.bool).triu(len(k) - len(q) + 1)
        parts.append(torch.einsum("hqk,khc->qhc", scores.masked_fill(hidden, float("-inf")).softmax(-1), v))
    return torch.cat(parts)
