"""Run every kernel under AddressSanitizer on ragged shapes: `test_cuda_kernels` starts this with its library preloaded.

With `--mistaken` a product writes rows that it must not, to see that this is seen.
"""

import sys

import torch

from cuda_emulator import Emulator
from glmcore.fp8 import cuda

BLOCK = (128, 128)


def quantise() -> None:
    for shape in [(1, 1), (3, 300), (130, 136), (129, 131)]:
        q, scale, _ = cuda.quantize_blocks(torch.randn(shape).bfloat16(), BLOCK, 1e-10, False)
        cuda.dequantize_blocks(q, scale, BLOCK, torch.bfloat16)
    cuda.quantize_blocks(torch.randn(30, 21).bfloat16(), (16, 8), 1e-10, False)
    for shape in [(9, 256), (5, 200)]:
        cuda.quantize_groups(torch.randn(shape).bfloat16(), 128, 1e-4, False, True)
    weights = [torch.randn(72, 136).bfloat16(), torch.randn(37, 50).bfloat16()]
    codes = [torch.zeros(136, 72, dtype=torch.uint8).t(), torch.zeros(37, 50, dtype=torch.uint8)]
    cuda.quantize_many(weights, codes, [torch.zeros(1, 2), torch.zeros(1, 1)], BLOCK, 1e-10, False)


def multiply() -> None:
    for sizes, columns, depth in [([3], 8, 16), ([0, 70, 0, 5], 24, 144)]:
        rows, slices = sum(sizes), -(-depth // 128)
        a, b = torch.zeros(rows, depth, dtype=torch.uint8), torch.zeros(len(sizes), columns, depth, dtype=torch.uint8)
        ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
        a_scale, b_scale = torch.ones(rows, slices), torch.ones(len(sizes), 1, slices)
        cuda.multiply_blocks(a, a_scale, b, b_scale, ends, torch.float32)
        cuda.multiply_blocks(a, a_scale, b[0].contiguous(), b_scale[0].contiguous(), None, torch.float32)


def main() -> None:
    mistaken = "--mistaken" in sys.argv
    edit = ("if (row < rows.num_rows && at < n)", "if (at < n)") if mistaken else None
    cuda.launch = Emulator(sanitized=True, edit=edit)
    if not mistaken:
        quantise()
    multiply()
    print("no wrong address")


if __name__ == "__main__":
    main()
