"""Context parallelism: the tokens of a packed batch are shared out to ranks, and meet in attention alone.

Every rank has the whole batch of ids and computes T / C of its T tokens. For attention it gathers the keys and values
of all ranks, which grouped-query attention makes small, and keeps its own queries; the backward pass gathers them again
and sums their gradients where they came from. So a rank keeps T / C tokens of everything between the passes.
Source: Llama 3 report (arXiv:2407.21783), section 3.3.2.

Shapes: T tokens of the batch, t = T / C of a rank, N documents, S keys that a rank's runs see, H query heads,
G key-value heads, c channels of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group

from glmcore.model.layout import DocumentLayout
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
    cu_seqlens: Tensor
    """Bounds of the documents in the batch, int32 [N + 1]."""
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
            torch.from_numpy(cu_seqlens.astype(np.int32)),
            torch.from_numpy(np.concatenate([*seen, place[:0]])),
            Runs.of(lengths, own.ends - first),
            axis.group,
        )

    def local(self, values: Tensor) -> Tensor:
        """This rank's rows of something that the whole batch has, [T, ...] to [t, ...]."""
        return values.index_select(0, self.tokens)

    def to(self, device: torch.device) -> "ContextLayout":
        """The same plan with its tensors on `device`."""
        names = ("tokens", "document", "cu_seqlens", "key_place", "runs")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved)


def layout_of(cu_seqlens: np.ndarray, context: Axis) -> DocumentLayout | ContextLayout:
    """How a packed batch with bounds `cu_seqlens` lies on this rank of `context`, which may be on its own."""
    if context.size == 1:
        return DocumentLayout.from_cu_seqlens(cu_seqlens)
    return ContextLayout.from_cu_seqlens(cu_seqlens, context)


def attend_over_ranks(query: Tensor, key: Tensor, value: Tensor, layout: ContextLayout) -> Tensor:
    """Attention from this rank's tokens to those of their documents up to themselves, wherever they are.

    All ranks of `layout.group` have to call it, and its backward pass, in the same order.

    Args:
        query: [t, H, c].
        key: [t, G, c].
        value: [t, G, c].
        layout: The plan.

    Returns:
        [t, H, c].
    """
    runs = layout.runs
    bounds = (runs.cu_queries, runs.cu_keys, runs.max_queries, runs.max_keys)
    key_value = torch.cat((key, value), dim=1)  # one exchange for both
    return _attend(query, key_value, layout.key_place, *bounds, layout.group.group_name)[0]


def sum_over_ranks(values: Tensor, layout: ContextLayout) -> Tensor:
    """The sum of `values` over the ranks of a batch. It carries no gradient."""
    values = values.detach().clone()
    dist.all_reduce(values, group=layout.group)
    return values


# One operator each way: `torch.compile` needs no code for the runs, which differ from batch to batch, and selective
# activation checkpointing can keep what comes out without another exchange.
@torch.library.custom_op("glmcore::attend_over_ranks", mutates_args=())
def _attend(
    query: Tensor,
    key_value: Tensor,
    key_place: Tensor,
    cu_queries: Tensor,
    cu_keys: Tensor,
    max_queries: int,
    max_keys: int,
    group: str,
) -> tuple[Tensor, Tensor]:
    """`attend` of keys and values [t, 2G, c] that are first gathered from all ranks."""
    seen_key, seen_value = _gather(key_value, key_place, group).chunk(2, dim=1)
    return attend(query, seen_key, seen_value, Runs(cu_queries, cu_keys, max_queries, max_keys))


@_attend.register_fake
def _(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(query.dtype, torch.float32)
    return torch.empty_like(query), query.new_empty(query.shape[1], query.shape[0], dtype=wide)


@torch.library.custom_op("glmcore::attend_over_ranks_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    query: Tensor,
    key_value: Tensor,
    mixed: Tensor,
    log_sum: Tensor,
    key_place: Tensor,
    cu_queries: Tensor,
    cu_keys: Tensor,
    max_queries: int,
    max_keys: int,
    group: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of `query` and of this rank's `key_value`, the latter summed over all ranks that have seen it."""
    seen_key, seen_value = _gather(key_value, key_place, group).chunk(2, dim=1)
    runs = Runs(cu_queries, cu_keys, max_queries, max_keys)
    grad_query, *grad_seen = attend_backward(grad, query, seen_key, seen_value, mixed, log_sum, runs)
    return grad_query, _sum_where_they_are(grad_seen, key_value, key_place, group)


@_attend_backward.register_fake
def _(grad: Tensor, query: Tensor, key_value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key_value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep this rank's tokens for the backward pass, and none of those that were gathered."""
    query, key_value, *plan = inputs
    ctx.save_for_backward(query, key_value, *output, *plan[:3])
    ctx.numbers_and_group = plan[3:]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_attend_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.numbers_and_group), *[None] * 6


_attend.register_autograd(_differentiate, setup_context=_keep)


def _gather(key_value: Tensor, key_place: Tensor, group: str) -> Tensor:
    """Keys and values that each run sees, [S, 2G, c]."""
    ranks = _resolve_process_group(group)  # pyright: ignore[reportArgumentType]  # a str with a name
    shared = key_value.new_empty(len(key_value) * ranks.size(), *key_value.shape[1:])
    dist.all_gather_into_tensor(shared, key_value.contiguous(), group=ranks)
    return shared.index_select(0, key_place)


def _sum_where_they_are(grad_seen: Sequence[Tensor], key_value: Tensor, key_place: Tensor, group: str) -> Tensor:
    """The opposite of `_gather`: sums of the gradients of keys and of values [S, G, c] over all runs of all ranks.

    They are added up in float32 or wider. Gives [t, 2G, c].
    """
    ranks = _resolve_process_group(group)  # pyright: ignore[reportArgumentType]  # a str with a name
    wide = torch.promote_types(key_value.dtype, torch.float32)
    shared = key_value.new_zeros(len(key_value) * ranks.size(), *key_value.shape[1:], dtype=wide)
    for half, grad in zip(shared.chunk(2, dim=1), grad_seen, strict=True):  # one by one: the wide copies are large
        half.index_add_(0, key_place, grad.to(wide))
    own = shared.new_empty(key_value.shape)
    dist.reduce_scatter_tensor(own, shared, group=ranks)
    return own.to(key_value.dtype)
