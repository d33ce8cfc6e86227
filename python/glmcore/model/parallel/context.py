"""Context parallelism: the tokens of a packed batch are shared out to ranks, and meet in attention alone.

Every rank has the whole batch of ids and computes T / C of its T tokens. For attention it gathers the keys and values
of all ranks, which grouped-query attention makes small, and keeps its own queries; the backward pass gathers them again
and sums their gradients where they came from. So a rank keeps T / C tokens of everything between the passes.
Source: Llama 3 report (arXiv:2407.21783), section 3.3.2.

Shapes: T tokens of the batch, t = T / C of a rank, N documents, S keys that a rank's runs see, H query heads,
G key-value heads, c channels of a head.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from glmcore.model.parallel.ranks import Axis
from glmcore.model.parallel.share import share_tokens
from glmcore.model.runs import Runs, attend, attend_backward


@dataclass(frozen=True)
class ContextLayout:
    """Which tokens of a packed batch this rank computes, and what they see."""

    tokens: Tensor
    """Their places in the batch, ascending, int64 [t]."""
    document: Tensor
    """Document of each of them, int64 [t]."""
    lengths: tuple[int, ...]
    """Tokens of each document of the batch, on all ranks together."""
    key_place: Tensor
    """The keys that each run sees, run after run, as places in what the ranks' keys are gathered to, int64 [S]."""
    runs: Runs
    group: dist.ProcessGroup
    """The C ranks that share the batch."""

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: np.ndarray, axis: Axis) -> "ContextLayout":
        """Plan for documents with bounds `cu_seqlens`, int [N + 1], starting at 0.

        Args:
            cu_seqlens: The same on all ranks.
            axis: This rank's place among those that share the batch.

        Raises:
            ConfigError: The tokens cannot be shared out evenly.
        """
        if axis.group is None:
            raise ValueError("a rank on its own shares nothing: use DocumentLayout")
        bounds = cu_seqlens.astype(np.int64)
        shares = share_tokens(bounds, axis.size)
        place = np.empty(bounds[-1], np.int64)
        place[np.concatenate([share.tokens for share in shares])] = np.arange(bounds[-1])
        own = shares[axis.rank]
        first = bounds[own.document]
        seen = [place[start:end] for start, end in zip(first, own.ends, strict=True)]
        lengths = own.ends - own.starts
        return cls(
            torch.from_numpy(own.tokens),
            torch.from_numpy(np.repeat(own.document, lengths)),
            tuple(np.diff(bounds).tolist()),
            torch.from_numpy(np.concatenate([*seen, place[:0]])),
            Runs.of(lengths, own.ends - first),
            axis.group,
        )

    def local(self, values: Tensor) -> Tensor:
        """This rank's rows of something that the whole batch has, [T, ...] to [t, ...]."""
        return values.index_select(0, self.tokens)

    def to(self, device: torch.device) -> "ContextLayout":
        """The same plan with its tensors on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("tokens", "document", "key_place", "runs")}
        return replace(self, **moved)


class _SharedAttention(torch.autograd.Function):
    """Attention of a rank's queries to the keys of all ranks. Keeps nothing that grows with T between the passes."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: ContextLayout) -> Tensor:
        seen_key, seen_value = _gather(key, value, layout)
        mixed, log_sum = attend(query, seen_key, seen_value, layout.runs)
        ctx.save_for_backward(query, key, value, mixed, log_sum)
        ctx.layout = layout
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, mixed, log_sum = ctx.saved_tensors
        layout: ContextLayout = ctx.layout
        seen = _gather(key, value, layout)
        grad_query, *grad_seen = attend_backward(grads[0], query, *seen, mixed, log_sum, layout.runs)
        return grad_query, *_scatter(torch.cat(grad_seen, dim=1), key, layout), None


@torch.compiler.disable(reason="runs differ from batch to batch, so each batch would be compiled anew")
def attend_over_ranks(query: Tensor, key: Tensor, value: Tensor, layout: ContextLayout) -> Tensor:
    """Attend from this rank's tokens to those of their documents up to themselves, wherever they are.

    All ranks of `layout.group` have to call it, and its backward pass, in the same order.

    Args:
        query: [t, H, c].
        key: [t, G, c].
        value: [t, G, c].
        layout: The plan.

    Returns:
        [t, H, c].
    """
    return _SharedAttention.apply(query, key, value, layout)  # pyright: ignore[reportReturnType]


def sum_over_ranks(values: Tensor, layout: ContextLayout) -> Tensor:
    """The sum of `values` over the ranks of a batch. It carries no gradient."""
    values = values.detach().clone()
    dist.all_reduce(values, group=layout.group)
    return values


def _gather(key: Tensor, value: Tensor, layout: ContextLayout) -> tuple[Tensor, Tensor]:
    """Keys and values that each run sees, [S, G, c] each."""
    own = torch.cat((key, value), dim=1)  # [t, 2G, c]: one exchange for both
    shared = own.new_empty(len(own) * layout.group.size(), *own.shape[1:])
    dist.all_gather_into_tensor(shared, own, group=layout.group)
    seen_key, seen_value = shared.index_select(0, layout.key_place).split(key.shape[1], dim=1)
    return seen_key, seen_value


def _scatter(grad_seen: Tensor, key: Tensor, layout: ContextLayout) -> tuple[Tensor, Tensor]:
    """Gradients of this rank's keys and values [t, G, c], summed over all that have seen them, in float32 or wider."""
    wide = torch.promote_types(key.dtype, torch.float32)
    shared = grad_seen.new_zeros(len(key) * layout.group.size(), *grad_seen.shape[1:], dtype=wide)
    shared.index_add_(0, layout.key_place, grad_seen.to(wide))
    own = shared.new_empty(len(key), *shared.shape[1:])
    dist.reduce_scatter_tensor(own, shared, group=layout.group)
    grad_key, grad_value = own.to(key.dtype).split(key.shape[1], dim=1)
    return grad_key, grad_value
