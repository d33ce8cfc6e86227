"""What passes between ranks inside a forward pass, and its gradient.

Ranks of a group compute one loss together, so a tensor may be whole and equal on all of them, with a gradient that is
whole and equal on all too, or a term that adds up over them. Source: Megatron-LM (arXiv:1909.08053), section 3, where
`enter` is called f and `leave` g.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.detach()  # not a view: FSDP hangs hooks on what a block gives, which a view could lose

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _summed(grads[0], ctx.group), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = (sent, received), group
        return _exchanged(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        sent, received = ctx.sizes
        return _exchanged(grads[0], received, sent, ctx.group), None, None, None


class _ShareGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, num_ranks: int) -> Tensor:
        ctx.num_ranks = num_ranks
        return x.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] / ctx.num_ranks, None


def _summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _exchanged(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    result = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(result, rows.contiguous(), received, sent, group=group)
    return result


def enter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Hand `x`, equal on all ranks of `group`, to work that they share out; its gradient is summed over them."""
    return _Enter.apply(x, group)  # pyright: ignore[reportReturnType]


def leave(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum up `x` over the ranks that have shared out the work; the gradient is theirs as it is."""
    return _Leave.apply(x, group)  # pyright: ignore[reportReturnType]


def share_gradient(x: Tensor, num_ranks: int) -> Tensor:
    """Hand `x` to work that all of `num_ranks` ranks do alike where its gradient is one that adds up over them."""
    return _ShareGradient.apply(x, num_ranks)  # pyright: ignore[reportReturnType]


def exchange(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """Send each rank of `group` its part of `rows`, and take in what they send, in the order of ranks.

    Args:
        rows: [R, ...].
        sent: Rows for each rank, R in all.
        received: Rows from each rank.
        group: The ranks.
    """
    return _Exchange.apply(rows, sent, received, group)  # pyright: ignore[reportReturnType]
