"""A weight that a layer holds in FP8, seen as one matrix of a checkpoint."""

import torch
from torch import Tensor

from glmcore.errors import Fp8Error
from glmcore.fp8.cuda import BLOCK
from glmcore.fp8.quantize import dequantize_blocks


class HeldWeight:
    """A matrix [M, N] held as codes and scales: views of a layer's memory."""

    def __init__(self, q: Tensor, scale_inv: Tensor) -> None:
        self.q = q
        self.scale_inv = scale_inv

    @property
    def shape(self) -> torch.Size:
        """Of the matrix."""
        return self.q.shape

    def copy_rows(self, start: int, q: Tensor, scale_inv: Tensor) -> None:
        """Hold these codes from row `start` on, which is the first of a block, and these scales.

        Raises:
            Fp8Error: They do not fit in.
        """
        end, first_block = start + len(q), start // BLOCK
        blocks = slice(first_block, first_block - (-len(q) // BLOCK))
        in_blocks = start % BLOCK == 0 and (end % BLOCK == 0 or end == len(self.q))
        same_shapes = self.q[start:end].shape == q.shape and self.scale_inv[blocks].shape == scale_inv.shape
        if not (in_blocks and same_shapes and q.dtype == self.q.dtype):
            raise Fp8Error(
                f"codes {list(q.shape)} from row {start} on with scales {list(scale_inv.shape)} do not fit a weight "
                f"{list(self.shape)} in 128x128 blocks"
            )
        self.q[start:end].copy_(q)
        self.scale_inv[blocks].copy_(scale_inv)

    def values(self) -> Tensor:
        """The matrix that is held, as a checkpoint with these codes and scales means it: bfloat16."""
        return dequantize_blocks(self.q.contiguous(), self.scale_inv.contiguous(), dtype=torch.bfloat16)
