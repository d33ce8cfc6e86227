"""The SwiGLU gate with a gradient that keeps little."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0] * up, gate), F.silu(gate).mul_(grads[0])


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, keeping the two for the backward pass, where `silu(gate)` is computed again.

    Source: Shazeer, GLU Variants Improve Transformer (arXiv:2002.05202).
    """
    return _SwiGlu.apply(gate, up)  # pyright: ignore[reportReturnType]
