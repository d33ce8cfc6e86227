"""What passes between ranks inside a forward pass, and its gradient.

Ranks of a group compute one loss together, so a tensor may be whole and equal on all of them, with a gradient that is
whole and equal on all too, or a term that adds up over them. Source: Megatron-LM (arXiv:1909.08053), section 3, where
`enter` is called f and `leave` g.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_reduce, wait_tensor


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return wait_tensor(all_reduce(grads[0].contiguous(), "sum", ctx.group)), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return wait_tensor(all_reduce(x.contiguous(), "sum", group))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _ShareGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, num_ranks: int) -> Tensor:
        ctx.num_ranks = num_ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] / ctx.num_ranks, None


def enter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Hand `x`, equal on all ranks of `group`, to work that they share out; its gradient is summed over them."""
    return _Enter.apply(x, group)  # pyright: ignore[reportReturnType]


def leave(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum up `x` over the ranks that have shared out the work; the gradient is theirs as it is."""
    return _Leave.apply(x, group)  # pyright: ignore[reportReturnType]


def share_gradient(x: Tensor, num_ranks: int) -> Tensor:
    """Hand `x` to work that all of `num_ranks` ranks do alike where its gradient is one that adds up over them."""
    return _ShareGradient.apply(x, num_ranks)  # pyright: ignore[reportReturnType]
