"""Partial rotary position embedding, half-rotated (GPT-NeoX order).

Shapes: T tokens, H heads, R rotated channels, C channels of a head.
"""

from typing import Any

import torch
from torch import Tensor


def rotary_angles(position_ids: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `apply_rotary`, float32.

    Frequencies are `theta ** (-2 i / rotary_dim)`; raising `theta` for longer contexts slows them.

    Args:
        position_ids: Position of each token in its document, [T].
        rotary_dim: R, even.
        theta: The rotary base.

    Returns:
        cos and sin, each [T, 1, R / 2].

    Source: transformers modeling_glm4_moe.py; RoFormer (arXiv:2104.09864), section 3.2.2.
    """
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=position_ids.device) / rotary_dim
    frequency = 1.0 / theta**exponent  # [R / 2]
    angle = position_ids.float()[:, None, None] * frequency
    return angle.cos(), angle.sin()


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation back, so nothing of the input is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    first, second, passed = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, passed), dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R channels of every head of `x` [T, H, C]; the others pass through."""
    return _Rotate.apply(x, cos, sin)  # pyright: ignore[reportReturnType]
