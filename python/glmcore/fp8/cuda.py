"""The CUDA halves of the operators of `ops`: checks that name the argument, sizes of grids, launches.

Shapes: E matrices of M rows and N columns, R rows of K activations. Results are new tensors on the input's device.
Codes are uint8 here.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glmcore.errors import KernelError
from glmcore.fp8.quantize import scales_shape
from glmcore.kernels.compile import Kernel
from glmcore.kernels.launch import launch

ALL_FINITE = 2**63 - 1
"""What stands where the place of the first value that is not finite would."""
BLOCK = 128
"""Rows and columns of a weight block, and length of an activation group, of products."""

_ELEMENTS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "Bf16"}
_THREADS = 256
_MAX_BLOCKS = 2**31 - 1  # of a grid, along x
_MAX_ROWS_OF_BLOCKS = 2**16 - 1  # along y
_GROUPS_PER_BLOCK = 8
_CODES_PER_THREAD = 8
_TILE = (64, 128)  # rows and columns of a product that a block of threads makes
_WEIGHT_WORDS = 11  # 8-byte numbers of a `Weight` in quantize_blocks.cu


def quantize_blocks(w: Tensor, block: tuple[int, int], floor: float, ue8m0: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and places of first values that are not finite of a matrix or a stack of them."""
    element = _element("w", w)
    _contiguous("w", w)
    q = torch.empty_like(w, dtype=torch.uint8)
    scale = w.new_empty(scales_shape(tuple(w.shape), block), dtype=torch.float32)
    bad = w.new_full((w.shape[0] if w.dim() == 3 else 1,), ALL_FINITE, dtype=torch.int64)
    if w.numel():  # an empty grid is a launch error
        rows, columns = w.shape[-2:]
        sizes = (np.int64(rows), np.int64(columns), np.int32(block[0]), np.int32(block[1]))
        args = (w, q, scale, bad, *sizes, np.float32(floor), np.int32(ue8m0))
        grid = (_within("w", scale.numel(), _MAX_BLOCKS),)
        launch(Kernel("quantize_blocks", "quantize_stack", element), grid, _THREADS, args, w.device)
    return q, scale, bad


def quantize_many(
    weights: Sequence[Tensor],
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    block: tuple[int, int],
    floor: float,
    ue8m0: bool,
) -> Tensor:
    """Quantise matrices into `codes` and `scales`, of any strides, by one launch for each type of values.

    Returns:
        Place of the first value that is not finite in each matrix, or `ALL_FINITE`, int64 [len(weights)].
    """
    device = weights[0].device
    bad = torch.full((len(weights),), ALL_FINITE, dtype=torch.int64, device=device)
    for dtype in dict.fromkeys(w.dtype for w in weights):
        chosen = [i for i, w in enumerate(weights) if w.dtype == dtype and w.numel()]
        if not chosen:
            continue
        table: list[list[int]] = []
        first_block = [0]
        for i in chosen:
            table.append(_describe_weight(i, weights[i], codes[i], scales[i], bad))
            first_block.append(first_block[-1] + scales[i].numel())
        words = torch.tensor([*(word for row in table for word in row), *first_block], dtype=torch.int64)
        on_device = _to_device(words, device)
        rule = (np.int32(block[0]), np.int32(block[1]), np.float32(floor), np.int32(ue8m0))
        args = (on_device, on_device[_WEIGHT_WORDS * len(chosen) :], np.int32(len(chosen)), *rule)
        grid = (_within("the weights", first_block[-1], _MAX_BLOCKS),)
        kernel = Kernel("quantize_blocks", "quantize_table", _element(f"weight {chosen[0]}", weights[chosen[0]]))
        launch(kernel, grid, _THREADS, args, device)
    return bad


def quantize_groups(
    x: Tensor, group: int, floor: float, ue8m0: bool, column_major: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales [R, ceil(K / group)] and the place of the first value that is not finite of `x` [R, K]."""
    element = _element("x", x)
    _contiguous("x", x)
    rows, columns = x.shape
    q = torch.empty_like(x, dtype=torch.uint8)
    scale = empty_group_scales(x, group, column_major)
    bad = x.new_full((1,), ALL_FINITE, dtype=torch.int64)
    if x.numel():
        strides = (np.int64(scale.stride(0)), np.int64(scale.stride(1)))
        sizes = (np.int64(rows), np.int64(columns), np.int32(group))
        args = (x, q, scale, bad, *sizes, *strides, np.float32(floor), np.int32(ue8m0))
        grid = (_within("x", -(-scale.numel() // _GROUPS_PER_BLOCK), _MAX_BLOCKS),)
        kernel = Kernel("quantize_groups", "quantize_rows", element)
        launch(kernel, grid, 32 * _GROUPS_PER_BLOCK, args, x.device)
    return q, scale, bad


def empty_group_scales(x: Tensor, group: int, column_major: bool) -> Tensor:
    """Memory for the scales of `x` [R, K], [R, ceil(K / group)] in either order."""
    rows, groups = x.shape[0], -(-x.shape[1] // group)
    if column_major:
        return x.new_empty((groups, rows), dtype=torch.float32).t()
    return x.new_empty((rows, groups), dtype=torch.float32)


def dequantize_blocks(q: Tensor, scale: Tensor, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Codes times scales of a matrix or a stack of them."""
    _contiguous("q", q)
    _contiguous("scale_inv", scale)
    out = torch.empty_like(q, dtype=dtype)
    element = _element("the result", out)
    if q.numel():
        rows, columns = q.shape[-2:]
        in_pieces = columns % _CODES_PER_THREAD == 0 and block[1] % _CODES_PER_THREAD == 0 and q.data_ptr() % 8 == 0
        num_threads = rows * columns // (_CODES_PER_THREAD if in_pieces else 1)
        num_matrices = _within("q", q.numel() // (rows * columns), _MAX_ROWS_OF_BLOCKS)
        sizes = (np.int64(rows), np.int64(columns), np.int32(block[0]), np.int32(block[1]), np.int32(in_pieces))
        grid = (_within("q", -(-num_threads // _THREADS), _MAX_BLOCKS), num_matrices)
        launch(Kernel("dequantize", "dequantize_stack", element), grid, _THREADS, (q, scale, out, *sizes), q.device)
    return out


def multiply_blocks(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, ends: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`a` [R, K] times the transpose of `b` [N, K], or of matrices of a stack [E, N, K] for rows up to `ends` [E].

    Args:
        a: Codes.
        a_scale: Scales of groups of 128, [R, ceil(K / 128)], in either order.
        b: Codes.
        b_scale: Scales of blocks of 128x128.
        ends: Rows of expert e end before row `ends[e]`, int32; None for a single matrix.
        dtype: bfloat16 or float32.
    """
    _contiguous("a", a)
    _contiguous("b", b)
    _contiguous("b_scale", b_scale)
    rows, depth = a.shape
    columns = b.shape[-2]
    if depth % 16 or a.data_ptr() % 16 or b.data_ptr() % 16:
        raise KernelError(f"the summed dimension must be a multiple of 16 and memory aligned to 16 bytes, got {depth}")
    if dtype not in (torch.bfloat16, torch.float32):
        raise KernelError(f"a product is bfloat16 or float32, got {dtype}")
    out = a.new_empty((rows, columns), dtype=dtype)
    if not out.numel():
        return out
    num_experts = 1 if ends is None else len(ends)
    row_tiles = -(-rows // _TILE[0])
    if ends is not None:  # each expert may end with a tile that is not full
        row_tiles = min(row_tiles + num_experts - 1, rows)
    sizes = (np.int32(num_experts), np.int64(rows), np.int32(columns), np.int32(depth))
    strides = (np.int64(a_scale.stride(0)), np.int64(a_scale.stride(1)))
    args = (a, a_scale, b, b_scale, out, ends, *sizes, *strides, np.int32(dtype == torch.float32))
    grid = (-(-columns // _TILE[1]), _within("a", row_tiles, _MAX_ROWS_OF_BLOCKS))
    launch(Kernel("gemm", "multiply_blocks"), grid, _THREADS, args, a.device)
    return out


def _describe_weight(index: int, w: Tensor, q: Tensor, scale: Tensor, bad: Tensor) -> list[int]:
    """A row of the table of `quantize_table`."""
    if w.stride(-1) != 1 and w.shape[-1] != 1:
        raise KernelError(f"columns of weight {index} must be adjacent, got strides {w.stride()}")
    row_stride, column_stride = q.stride()
    if 1 not in (row_stride, column_stride):
        raise KernelError(f"codes of weight {index} must be adjacent along rows or columns, got strides {q.stride()}")
    pointers = [w.data_ptr(), q.data_ptr(), scale.data_ptr(), bad[index:].data_ptr()]
    return [*pointers, *w.shape, w.stride(0), row_stride, column_stride, *scale.stride()]


def _to_device(words: Tensor, device: torch.device) -> Tensor:
    """A copy that the current stream makes in its order; pinned, so that the caller does not wait for it."""
    return words if device.type == "cpu" else words.pin_memory().to(device, non_blocking=True)


def _element(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in _ELEMENTS:
        raise KernelError(f"{name} must be float32, float16 or bfloat16, got {tensor.dtype}")
    return _ELEMENTS[tensor.dtype]


def _contiguous(name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise KernelError(f"{name} must be contiguous, got strides {tensor.stride()}")


def _within(name: str, count: int, limit: int) -> int:
    if count > limit:
        raise KernelError(f"{name} is too large for one launch: {count} blocks of threads, at most {limit}")
    return count
