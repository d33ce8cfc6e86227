"""Attention of runs: stretches of queries that each see a stretch of keys which ends where they end.

Shapes: t queries, S keys, R runs, H query heads, G key-value heads, C channels of a head.

Both directions are plain functions, for callers that decide what lives from the forward to the backward pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from glmcore.errors import ConfigError


@dataclass(frozen=True)
class Runs:
    """R runs, one behind the other. Query i of the n of a run sees all of its m keys but the last n - 1 - i."""

    cu_queries: Tensor
    """Bounds of the runs' queries, int32 [R + 1]."""
    cu_keys: Tensor
    """Bounds of their keys, int32 [R + 1]."""
    max_queries: int
    """Queries of the longest run."""
    max_keys: int
    """Keys of the run that sees most; every run sees at least its queries' own."""

    @classmethod
    def of(cls, num_queries: np.ndarray, num_keys: np.ndarray) -> "Runs":
        """Runs of so many queries and keys, int [R] each."""
        bounds = [np.concatenate(([0], np.cumsum(numbers))).astype(np.int32) for numbers in (num_queries, num_keys)]
        return cls(
            torch.from_numpy(bounds[0]),
            torch.from_numpy(bounds[1]),
            int(num_queries.max(initial=0)),
            int(num_keys.max(initial=0)),
        )

    def to(self, device: torch.device) -> "Runs":
        """The same runs for attention on `device`."""
        return replace(self, cu_queries=self.cu_queries.to(device), cu_keys=self.cu_keys.to(device))


def attend(query: Tensor, key: Tensor, value: Tensor, runs: Runs) -> tuple[Tensor, Tensor]:
    """Attention of every run, at the cost of the keys that its queries see.

    Args:
        query: [t, H, C]; bfloat16 or float16 on a GPU.
        key: [S, G, C], G dividing H.
        value: [S, G, C].
        runs: Their bounds.

    Returns:
        Mixed values [t, H, C], and the logarithm of each query's softmax denominator [H, t], float32 or wider.

    Raises:
        ConfigError: The device has no such attention for this data type.
    """
    if query.is_cuda:
        _check_half(query)
        bounds = (runs.cu_queries, runs.cu_keys, runs.max_queries, runs.max_keys)
        # This kernel's causal mask ends at the bottom right, as runs do. No dropout, no debug mask.
        mixed, log_sum, *_ = torch.ops.aten._flash_attention_forward(query, key, value, *bounds, 0.0, True, False)
        return mixed, log_sum
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mixed = torch.empty_like(query)
    log_sum = query.new_empty(query.shape[1::-1], dtype=torch.promote_types(query.dtype, torch.float32))
    for part in _parts(runs):
        q, k, v = _heads(query, part.queries), _heads(key, part.keys), _heads(value, part.keys)
        out, total = forward(q, k, v, 0.0, part.is_own)
        if not part.is_own:  # what the queries have from their own keys weighs less beside those before
            own, own_total = _heads(mixed, part.queries), log_sum[None, :, part.queries]
            both = torch.logaddexp(own_total, total)
            out = own * (own_total - both).exp()[..., None] + out * (total - both).exp()[..., None]
            total = both
        mixed[part.queries] = out[0].transpose(0, 1)
        log_sum[:, part.queries] = total[0]
    return mixed, log_sum


def attend_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, mixed: Tensor, log_sum: Tensor, runs: Runs
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `query`, `key` and `value`, given that of `mixed`; the others are as `attend` had and gave them."""
    if query.is_cuda:
        unused = torch.empty(0, device=query.device)
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)
        bounds = (runs.cu_queries, runs.cu_keys, runs.max_queries, runs.max_keys)
        return torch.ops.aten._flash_attention_backward(
            grad, query, key, value, mixed, log_sum, *bounds, 0.0, True, no_dropout, unused
        )
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grad_query, grad_key, grad_value = torch.zeros_like(query), torch.empty_like(key), torch.empty_like(value)
    for part in _parts(runs):  # each key's share follows from the whole denominator, so the parts just add up
        g, q, out = (_heads(x, part.queries) for x in (grad, query, mixed))
        k, v = _heads(key, part.keys), _heads(value, part.keys)
        piece = backward(g, q, k, v, out, log_sum[None, :, part.queries], 0.0, part.is_own)
        grad_query[part.queries] += piece[0][0].transpose(0, 1)
        grad_key[part.keys] = piece[1][0].transpose(0, 1)
        grad_value[part.keys] = piece[2][0].transpose(0, 1)
    return grad_query, grad_key, grad_value


@dataclass(frozen=True)
class _Part:
    """Queries of a run with a part of their keys."""

    queries: slice
    keys: slice
    is_own: bool
    """True for the keys of the queries' own tokens, False for those before, which all of the queries see."""


def _parts(runs: Runs) -> Iterator[_Part]:
    """The one or two parts of each run, its own keys first."""
    for queries, keys in zip(pairwise(runs.cu_queries.tolist()), pairwise(runs.cu_keys.tolist()), strict=True):
        border = keys[1] - (queries[1] - queries[0])
        yield _Part(slice(*queries), slice(border, keys[1]), True)
        if keys[0] < border:
            yield _Part(slice(*queries), slice(keys[0], border), False)


def _heads(x: Tensor, tokens: slice) -> Tensor:
    """Some rows of [tokens, heads, C] as [1, heads, length, C]."""
    return x[tokens].transpose(0, 1)[None]


def _check_half(query: Tensor) -> None:
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(f"attention of runs on a GPU needs bfloat16 or float16, not {query.dtype}")
