"""Products of block-wise FP8 matrices in plain float64: what the kernel's arithmetic says, sum by sum."""

import torch
from torch import Tensor


def multiply_blocks(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, *, step: int = 32) -> Tensor:
    """`a` [R, K] times the transpose of `b` [N, K], float32.

    Within a slice of 128 k, sums of `step` products are exact (a float64 holds them) and rounded to float32 when they
    are added to what came before; so a tensor core with a float32 accumulator does it.
    """
    rows, depth = a.shape
    columns = b.shape[0]
    total = torch.zeros(rows, columns)
    for slice_, start in enumerate(range(0, depth, 128)):
        partial = torch.zeros(rows, columns)
        for k in range(start, min(start + 128, depth), step):
            part = slice(k, min(k + step, start + 128, depth))
            exact = a[:, part].float().double() @ b[:, part].float().double().T
            partial = (partial.double() + exact).float()
        of_block = b_scale[:, slice_].repeat_interleave(128)[:columns]
        total = total + partial * (a_scale[:, slice_, None] * of_block)
    return total
