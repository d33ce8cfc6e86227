"""Block-wise FP8 in plain PyTorch: the arithmetic that the fast path must repeat to the bit."""

import torch
from torch import Tensor


def quantize_blocks(w: Tensor, block: tuple[int, int], floor: float) -> tuple[Tensor, Tensor]:
    """Codes and scales of `w` [M, N], block by block. Divisions are of tensors, since PyTorch divides by a number by
    multiplying with its reciprocal."""
    rows, columns = -(-w.shape[0] // block[0]), -(-w.shape[1] // block[1])
    q = torch.empty(w.shape, dtype=torch.float8_e4m3fn)
    scale = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            place = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            part = w[place].float()
            amax = part.abs().max().clamp(min=floor)
            scale[i, j] = amax / torch.full_like(amax, 448.0)
            q[place] = (part / scale[i, j].expand_as(part)).clamp(-448, 448).to(torch.float8_e4m3fn)
    return q, scale


def dequantize_blocks(q: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """Codes times their block's scale, float32."""
    wide = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return q.float() * wide[: q.shape[0], : q.shape[1]]
