"""Root-mean-square normalisation."""

from typing import Any

import torch
from torch import Tensor, nn


class _RmsNorm(torch.autograd.Function):
    """Keeps the input and one number per row; autograd would keep four tensors of the input's size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        grad_weight = (grads[0] * normed).flatten(0, -2).sum(0).to(weight.dtype)
        grad = grads[0] * weight.to(scale.dtype)
        inner = (grad * normed).mean(-1, keepdim=True)
        return grad.sub_(normed.mul_(inner)).mul_(scale).to(x.dtype), grad_weight, None


class RMSNorm(nn.Module):
    """Scale to unit root mean square over the last dimension, in float32 or wider."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return _RmsNorm.apply(x, self.weight, self.eps)  # pyright: ignore[reportReturnType]
