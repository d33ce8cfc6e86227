"""Partial rotary position embedding, half-rotated (GPT-NeoX order).

Shapes: T tokens, H heads, R rotated channels, C channels of a head.
"""

import torch
from torch import Tensor


def rotary_angles(position_ids: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `apply_rotary`, float32 unless positions are of another float type.

    Frequencies are `theta ** (-2 i / rotary_dim)`; raising `theta` for longer contexts slows them.

    Args:
        position_ids: Position of each token in its document, [T].
        rotary_dim: R, even.
        theta: The rotary base.

    Returns:
        cos and sin, each [T, 1, R], the R/2 frequencies twice.

    Source: transformers modeling_glm4_moe.py; RoFormer (arXiv:2104.09864), section 3.2.2.
    """
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=position_ids.device) / rotary_dim
    frequency = 1.0 / theta**exponent  # [R / 2]
    angle = position_ids.float()[:, None] * frequency  # [T, R / 2]
    angle = torch.cat((angle, angle), dim=-1)[:, None]  # [T, 1, R]
    return angle.cos(), angle.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R channels of every head of `x` [T, H, C]; the others pass through."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    rotary_dim = cos.shape[-1]
    rotated, passed = x[..., :rotary_dim], x[..., rotary_dim:]
    first, second = rotated.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return torch.cat((rotated * cos + turned * sin, passed), dim=-1)
