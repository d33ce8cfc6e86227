"""Moves of rows whose gradients are moves too.

`x[index]` has a scatter-add as gradient, which PyTorch runs on one core and in an order that the caller cannot see.
Where the inverse of an index is known, the gradient is again a gather: every sum has a fixed order, so results are
bitwise repeatable on every device.

Shapes: T tokens, D channels, K experts per token, R = T * K routed rows.
"""

from typing import Any

import torch
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor, padding: Tensor | None) -> Tensor:
        ctx.save_for_backward(inverse, padding)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        inverse, padding = ctx.saved_tensors
        grad = grads[0].index_select(0, inverse)
        if padding is not None:
            grad = grad.masked_fill(padding.view(-1, *[1] * (grad.dim() - 1)), 0)
        return grad, None, None, None


def gather_rows(x: Tensor, index: Tensor, inverse: Tensor, padding: Tensor | None = None) -> Tensor:
    """`x[index]` along dimension 0, with `grad[inverse]` as its gradient.

    Args:
        x: [N, ...].
        index: Rows to take, [M].
        inverse: For each row of `x` the place in `index` whose gradient it receives, [N].
        padding: [N] bool, rows of `x` that receive no gradient because `index` does not take them.
    """
    return _GatherRows.apply(x, index, inverse, padding)  # pyright: ignore[reportReturnType]


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return _sum_of_rows(grads[0], place), None, None


def dispatch(x: Tensor, token: Tensor, place: Tensor) -> Tensor:
    """Copy each token to the rows of its experts: `x[token]`.

    Args:
        x: [T, D].
        token: Token of each row, int64 [R].
        place: Rows of each token, int64 [T, K].

    Returns:
        [R, D].
    """
    return _Dispatch.apply(x, token, place)  # pyright: ignore[reportReturnType]


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, token: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, token, place)
        return _sum_of_rows(rows, place, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, weight, token, place = ctx.saved_tensors
        grad_of_rows = grads[0].index_select(0, token)  # [R, D]
        of_row = torch.empty_like(weight).flatten().index_copy_(0, place.flatten(), weight.flatten())
        wide = torch.promote_types(rows.dtype, torch.float32)
        grad_weight = (rows * grad_of_rows).sum(-1, dtype=wide).index_select(0, place.flatten())
        return grad_of_rows.mul_(of_row[:, None].to(rows.dtype)), grad_weight.view_as(weight), None, None


def combine(rows: Tensor, weight: Tensor, token: Tensor, place: Tensor) -> Tensor:
    """Weighted sum of the rows of each token: `sum_k weight[t, k] * rows[place[t, k]]`.

    Args:
        rows: [R, D].
        weight: float32 or wider [T, K].
        token: Token of each row, int64 [R].
        place: Rows of each token, int64 [T, K].

    Returns:
        [T, D], summed in the order of k.
    """
    return _Combine.apply(rows, weight, token, place)  # pyright: ignore[reportReturnType]


def _sum_of_rows(rows: Tensor, place: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum over k of `rows[place[:, k]]`, each times `weight[:, k]`, in float32 or wider, [T, D]."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    total: Tensor | None = None
    for k in range(place.shape[1]):
        part = rows.index_select(0, place[:, k])
        if total is None:
            total = part.to(wide) if weight is None else part * weight[:, :1]
        else:
            total = total.add_(part) if weight is None else total.addcmul_(part.to(wide), weight[:, k : k + 1])
    assert total is not None
    return total.to(rows.dtype)
