"""Row gathers whose gradient is a gather too.

`x[index]` has a scatter-add as gradient, which PyTorch runs on one core and in an order that the caller cannot see.
Where every row of `x` is taken exactly once the gradient is again a gather, by the inverse index.
"""

from typing import Any

import torch
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor, padding: Tensor | None) -> Tensor:
        ctx.save_for_backward(index, inverse, padding)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        _, inverse, padding = ctx.saved_tensors
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
