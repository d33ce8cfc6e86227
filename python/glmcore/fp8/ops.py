"""Block-wise FP8 as operators of torch: `torch.ops.glmcore.*`, each with a CPU, a CUDA and a fake implementation.

So they may be compiled, exported and recorded into CUDA graphs; none waits for the device. Instead of raising for NaN
and infinity, quantising gives the place (row * columns + column) of the first such value, or `ALL_FINITE`; they become
NaN. CPU halves are the Rust core (to the bit the same as the kernels) and `products`.

Codes are uint8 here, since torch checks operators by arithmetic on their inputs, which float8_e4m3fn lacks: pass
`q.view(torch.uint8)`.

Shapes: E matrices of M rows and N columns; R rows of K activations.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glmcore.errors import Fp8Error
from glmcore.fp8 import cuda, products, torch_products
from glmcore.fp8.cuda import ALL_FINITE, BLOCK
from glmcore.fp8.quantize import ACTIVATION_FLOOR, quantize_into, scales_shape
from glmcore.fp8.quantize import dequantize_blocks as _dequantize_on_cpu


@torch.library.custom_op("glmcore::quantize_blocks", mutates_args=(), device_types="cpu")
def quantize_blocks(
    w: Tensor, block_rows: int, block_columns: int, floor: float, ue8m0: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, float32 scales and first bad places [E] (or [1]) of `w` [M, N] or [E, M, N], contiguous."""
    q = torch.empty(w.shape, dtype=torch.uint8)
    scale = torch.empty(scales_shape(tuple(w.shape), (block_rows, block_columns)))
    quantize_into(w, (block_rows, block_columns), floor, ue8m0, q, scale)
    matrices = [w] if w.dim() == 2 else list(w)
    return q, scale, torch.tensor([_first_bad(matrix) for matrix in matrices], dtype=torch.int64)


@quantize_blocks.register_kernel("cuda")
def _(w: Tensor, block_rows: int, block_columns: int, floor: float, ue8m0: bool) -> tuple[Tensor, Tensor, Tensor]:
    return cuda.quantize_blocks(w, (block_rows, block_columns), floor, ue8m0)


@quantize_blocks.register_fake
def _(w: Tensor, block_rows: int, block_columns: int, floor: float, ue8m0: bool) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.empty_like(w, dtype=torch.uint8)
    scale = w.new_empty(scales_shape(tuple(w.shape), (block_rows, block_columns)), dtype=torch.float32)
    return q, scale, w.new_empty((w.shape[0] if w.dim() == 3 else 1,), dtype=torch.int64)


@torch.library.custom_op("glmcore::quantize_groups", mutates_args=(), device_types="cpu")
def quantize_groups(
    x: Tensor, group: int, floor: float, ue8m0: bool, column_major: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales [R, ceil(K / group)] and first bad place [1] of `x` [R, K], contiguous.

    Args:
        x: float32, float16 or bfloat16.
        group: Values of a row that share a scale.
        floor: Smallest amax of a group.
        ue8m0: Round scales up to powers of two.
        column_major: Scales of neighbouring rows are adjacent in memory, as some products want them.
    """
    q = torch.empty(x.shape, dtype=torch.uint8)
    scale = torch.empty(scales_shape(tuple(x.shape), (1, group)))
    quantize_into(x, (1, group), floor, ue8m0, q, scale)
    return q, _ordered(scale, column_major), torch.tensor([_first_bad(x)], dtype=torch.int64)


@quantize_groups.register_kernel("cuda")
def _(x: Tensor, group: int, floor: float, ue8m0: bool, column_major: bool) -> tuple[Tensor, Tensor, Tensor]:
    return cuda.quantize_groups(x, group, floor, ue8m0, column_major)


@quantize_groups.register_fake
def _(x: Tensor, group: int, floor: float, ue8m0: bool, column_major: bool) -> tuple[Tensor, Tensor, Tensor]:
    scale = cuda.empty_group_scales(x, group, column_major)
    return torch.empty_like(x, dtype=torch.uint8), scale, x.new_empty((1,), dtype=torch.int64)


@torch.library.custom_op("glmcore::dequantize_blocks", mutates_args=(), device_types="cpu")
def dequantize_blocks(q: Tensor, scale_inv: Tensor, block_rows: int, block_columns: int, dtype: torch.dtype) -> Tensor:
    """Codes times scales, rounded once to `dtype`: float32, float16 or bfloat16."""
    return _dequantize_on_cpu(_e4m3(q), scale_inv, (block_rows, block_columns), dtype)


@dequantize_blocks.register_kernel("cuda")
def _(q: Tensor, scale_inv: Tensor, block_rows: int, block_columns: int, dtype: torch.dtype) -> Tensor:
    return cuda.dequantize_blocks(q, scale_inv, (block_rows, block_columns), dtype)


@dequantize_blocks.register_fake
def _(q: Tensor, scale_inv: Tensor, block_rows: int, block_columns: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(q, dtype=dtype)


@torch.library.custom_op("glmcore::quantize_many", mutates_args=("codes", "scales"), device_types="cpu")
def quantize_many(
    weights: Sequence[Tensor],
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    block_rows: int,
    block_columns: int,
    floor: float,
    ue8m0: bool,
) -> Tensor:
    """Quantise matrices into given memory, on a GPU by one launch; see `glmcore.fp8.many`.

    Returns:
        First bad place of each matrix, int64 [len(weights)].
    """
    bad = []
    for w, q, scale in zip(weights, codes, scales, strict=True):
        own_q, own_scale, own_bad = quantize_blocks(w.contiguous(), block_rows, block_columns, floor, ue8m0)
        q.copy_(own_q)
        scale.copy_(own_scale)
        bad.append(own_bad)
    return torch.cat(bad)


@quantize_many.register_kernel("cuda")
def _(
    weights: Sequence[Tensor],
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    block_rows: int,
    block_columns: int,
    floor: float,
    ue8m0: bool,
) -> Tensor:
    return cuda.quantize_many(weights, codes, scales, (block_rows, block_columns), floor, ue8m0)


@quantize_many.register_fake
def _(
    weights: Sequence[Tensor],
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    block_rows: int,
    block_columns: int,
    floor: float,
    ue8m0: bool,
) -> Tensor:
    return weights[0].new_empty((len(weights),), dtype=torch.int64)


@torch.library.custom_op("glmcore::fp8_linear", mutates_args=(), device_types="cpu")
def fp8_linear(x: Tensor, weight: Tensor, weight_scale_inv: Tensor) -> Tensor:
    """`x` [R, K], quantised in groups of 128, times the transpose of a weight [N, K] in blocks of 128x128.

    The type of the result is that of `x`: float32, float16 or bfloat16.
    """
    q, scale, _ = quantize_groups(x.contiguous(), BLOCK, ACTIVATION_FLOOR, False, False)
    return products.multiply_blocks(_e4m3(q), scale, _e4m3(weight), weight_scale_inv).to(x.dtype)


@fp8_linear.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, weight_scale_inv: Tensor) -> Tensor:
    by_torch = torch_products.fits(x, weight)
    q, scale, _ = cuda.quantize_groups(x.contiguous(), BLOCK, ACTIVATION_FLOOR, False, by_torch)
    if by_torch:
        return torch_products.multiply_blocks(_e4m3(q), scale, _e4m3(weight), weight_scale_inv)
    return cuda.multiply_blocks(q, scale, weight, weight_scale_inv, None, _product_type(x)).to(x.dtype)


@fp8_linear.register_fake
def _(x: Tensor, weight: Tensor, weight_scale_inv: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


@torch.library.custom_op("glmcore::fp8_grouped_linear", mutates_args=(), device_types="cpu")
def fp8_grouped_linear(x: Tensor, weight: Tensor, weight_scale_inv: Tensor, ends: Tensor) -> Tensor:
    """As `fp8_linear` with matrix e of a stack [E, N, K] for rows from `ends[e - 1]` up to `ends[e]`, int32 [E]."""
    q, scale, _ = quantize_groups(x.contiguous(), BLOCK, ACTIVATION_FLOOR, False, False)
    return products.multiply_grouped(_e4m3(q), scale, _e4m3(weight), weight_scale_inv, ends).to(x.dtype)


@fp8_grouped_linear.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, weight_scale_inv: Tensor, ends: Tensor) -> Tensor:
    q, scale, _ = cuda.quantize_groups(x.contiguous(), BLOCK, ACTIVATION_FLOOR, False, False)
    return cuda.multiply_blocks(q, scale, weight, weight_scale_inv, ends, _product_type(x)).to(x.dtype)


@fp8_grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, weight_scale_inv: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[1]))


def check_finite(bad: Tensor, columns: int) -> None:
    """Wait for the places that quantising gave, and refuse what is not finite.

    Raises:
        Fp8Error: The first place is named.
    """
    for matrix, place in enumerate(bad.tolist()):
        if place != ALL_FINITE:
            where = f"value at row {place // columns}, column {place % columns}"
            raise Fp8Error(f"{f'matrix {matrix}, ' if len(bad) > 1 else ''}{where} is not finite")


def _e4m3(codes: Tensor) -> Tensor:
    return codes.view(torch.float8_e4m3fn)


def _first_bad(w: Tensor) -> int:
    bad = (~w.isfinite()).flatten()
    return int(bad.to(torch.uint8).argmax()) if bool(bad.any()) else ALL_FINITE


def _ordered(scale: Tensor, column_major: bool) -> Tensor:
    return scale.t().contiguous().t() if column_major else scale


def _product_type(x: Tensor) -> torch.dtype:
    """float16 results are rounded from float32 ones."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
