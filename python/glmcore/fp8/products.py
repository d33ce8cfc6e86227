"""Products of block-wise FP8 matrices on the CPU: the arithmetic of cuda/gemm.cu in PyTorch.

For each slice of 128 of the summed dimension: products of codes are summed in float32, the sum is multiplied with the
product of both scales and added, each operation rounded to float32. A sum of 128 products of codes may be rounded in
any order here and on the tensor core, so both are within `128 * 2**-24 * sum |a b|` of each other in a slice. Hopper's
tensor cores keep about 14 bits of FP8 products: there the first factor is about `2**-13`.
Source: DeepSeek-V3 report (arXiv:2412.19437), section 3.3.2.
"""

from itertools import pairwise

import torch
from torch import Tensor

SLICE = 128


def multiply_blocks(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    """`a` [R, K] times the transpose of `b` [N, K], float32 [R, N]; see `glmcore.fp8.cuda.multiply_blocks`."""
    total = torch.zeros(a.shape[0], b.shape[0])
    of_row = b_scale.repeat_interleave(SLICE, 0)[: b.shape[0]]  # [N, K / 128]
    for index, (a_part, b_part) in enumerate(zip(a.split(SLICE, 1), b.split(SLICE, 1), strict=True)):
        partial = a_part.float() @ b_part.float().T
        total = total + partial * (a_scale[:, index, None] * of_row[None, :, index])
    return total


def multiply_grouped(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, ends: Tensor) -> Tensor:
    """As `multiply_blocks` with `b[e]` for rows from `ends[e - 1]` up to `ends[e]`."""
    bounds = [0, *ends.tolist()]
    parts = [
        multiply_blocks(a[start:end], a_scale[start:end], b[e], b_scale[e])
        for e, (start, end) in enumerate(pairwise(bounds))
        if start < end
    ]
    return torch.cat(parts) if parts else torch.zeros(0, b.shape[1])
