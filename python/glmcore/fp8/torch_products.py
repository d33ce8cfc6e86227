"""PyTorch's own block-wise FP8 product, where a device has it.

It is `torch.nn.functional.scaled_mm` with scales of 1x128 and 128x128, which cuBLASLt implements for Hopper.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 128


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether `multiply_blocks` may be called for this input and weight [N, K]."""
    columns, depth = weight.shape
    whole = columns % _BLOCK == 0 and depth % _BLOCK == 0 and x.shape[0] > 0
    return whole and x.dtype == torch.bfloat16 and _has_products(x.device.index)


def multiply_blocks(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    """`a` [R, K] times the transpose of `b` [N, K], bfloat16; scales of `a` are column after column."""
    return F.scaled_mm(
        a,
        b.t(),
        scale_a=a_scale,
        scale_recipe_a=F.ScalingType.BlockWise1x128,
        scale_b=b_scale.t(),
        scale_recipe_b=F.ScalingType.BlockWise128x128,
        output_dtype=torch.bfloat16,
    )


@functools.cache
def _has_products(device: int) -> bool:
    """Whether a device multiplies so: asked once, by a product of known result."""
    if not hasattr(F, "scaled_mm") or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    ones = torch.ones(_BLOCK, 2 * _BLOCK, device=f"cuda:{device}")
    codes = ones.to(torch.float8_e4m3fn)
    a_scale = torch.tensor([[1.0, 2.0]], device=ones.device).expand(_BLOCK, 2).t().contiguous().t()
    b_scale = torch.tensor([[1.0, 4.0]], device=ones.device)
    try:
        result = multiply_blocks(codes, a_scale, codes, b_scale)
    except (RuntimeError, ValueError):  # torch's ways to say that it cannot
        return False
    return bool((result == 1.0 * _BLOCK + 8.0 * _BLOCK).all())
