"""Attention of runs: stretches of queries that each see a stretch of keys which ends where they end.

Shapes: t queries, S keys, R runs, H query heads, G key-value heads, C channels of a head.

Both directions are plain functions, for callers that decide themselves what lives from the forward to the backward pass.
"""

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
    num_queries: tuple[int, ...]
    """Queries of each run."""
    num_keys: tuple[int, ...]
    """Keys of each run, at least its queries."""

    @classmethod
    def of(cls, num_queries: np.ndarray, num_keys: np.ndarray) -> "Runs":
        """Runs of so many queries and keys, int [R] each."""
        bounds = [np.concatenate(([0], np.cumsum(numbers))).astype(np.int32) for numbers in (num_queries, num_keys)]
        return cls(
            torch.from_numpy(bounds[0]),
            torch.from_numpy(bounds[1]),
            tuple(num_queries.tolist()),
            tuple(num_keys.tolist()),
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
        mixed, log_sum, *_ = torch.ops.aten._flash_attention_forward(  # causal from the bottom right
            query,
            key,
            value,
            runs.cu_queries,
            runs.cu_keys,
            max(runs.num_queries),
            max(runs.num_keys),
            0.0,
            True,
            False,
        )
        return mixed, log_sum
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mixed = torch.empty_like(query)
    wide = torch.promote_types(query.dtype, torch.float32)
    log_sum = query.new_empty(query.shape[1], query.shape[0], dtype=wide)
    for (start, end), q, k, v in _each_run(query, key, value, runs):
        prefix = k.shape[2] - q.shape[2]
        out, total = forward(q, k[:, :, prefix:], v[:, :, prefix:], 0.0, True)
        if prefix:
            before, total_before = forward(q, k[:, :, :prefix], v[:, :, :prefix], 0.0, False)
            own, total = total, torch.logaddexp(total, total_before)
            out = out * (own - total).exp()[..., None] + before * (total_before - total).exp()[..., None]
        mixed[start:end] = out[0].transpose(0, 1)
        log_sum[:, start:end] = total[0]
    return mixed, log_sum


def attend_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, mixed: Tensor, log_sum: Tensor, runs: Runs
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `query`, `key` and `value`, given that of `mixed`; the others are as `attend` had and gave them."""
    if query.is_cuda:
        unused = torch.empty(0, device=query.device)
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)
        return torch.ops.aten._flash_attention_backward(
            grad, query, key, value, mixed, log_sum, runs.cu_queries, runs.cu_keys,
            max(runs.num_queries), max(runs.num_keys), 0.0, True, no_dropout, unused,
        )  # fmt: skip
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grads = tuple(torch.empty(part.shape, dtype=part.dtype) for part in (query, key, value))
    for run, ((start, end), q, k, v) in enumerate(_each_run(query, key, value, runs)):
        g, out = (part[start:end].transpose(0, 1)[None] for part in (grad, mixed))
        total = log_sum[None, :, start:end]
        prefix = k.shape[2] - q.shape[2]
        first = int(runs.cu_keys[run])
        own = backward(g, q, k[:, :, prefix:], v[:, :, prefix:], out, total, 0.0, True)
        grad_query = own[0]
        if prefix:  # the shares of all keys follow from the whole denominator, so the two parts just add up
            before = backward(g, q, k[:, :, :prefix], v[:, :, :prefix], out, total, 0.0, False)
            grad_query = grad_query + before[0]
            for part, piece in zip(grads[1:], before[1:], strict=True):
                part[first : first + prefix] = piece[0].transpose(0, 1)
        grads[0][start:end] = grad_query[0].transpose(0, 1)
        for part, piece in zip(grads[1:], own[1:], strict=True):
            part[first + prefix : first + k.shape[2]] = piece[0].transpose(0, 1)
    return grads


def _each_run(query: Tensor, key: Tensor, value: Tensor, runs: Runs):  # noqa: ANN202
    """Bounds, queries, keys and values of each run, the last three as [1, heads, length, C]."""
    queries, keys = pairwise(runs.cu_queries.tolist()), pairwise(runs.cu_keys.tolist())
    for own, seen in zip(queries, keys, strict=True):
        parts = (
            part[slice(*bounds)].transpose(0, 1)[None] for part, bounds in ((query, own), (key, seen), (value, seen))
        )
        yield own, *parts


def _check_half(query: Tensor) -> None:
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(f"attention of runs on a GPU needs bfloat16 or float16, not {query.dtype}")
