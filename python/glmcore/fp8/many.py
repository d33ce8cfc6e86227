"""All weights of a model to FP8 in one call: on a GPU one launch in place of hundreds.

The results go into views of memory that the caller has made, of any strides. So the layouts that an engine wants need
no pass of their own: matrices joined into a stack (`expert_stack`), cut over ranks (a slice), transposed (`q.t()`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glmcore.errors import Fp8Error
from glmcore.fp8.ops import check_finite
from glmcore.fp8.ops import quantize_many as _quantize_many
from glmcore.fp8.quantize import WEIGHT_FLOOR, ScaleFormat, scales_shape


def quantize_many(
    weights: Sequence[Tensor],
    out: Sequence[tuple[Tensor, Tensor]] | None = None,
    block: tuple[int, int] = (128, 128),
    scale_format: ScaleFormat = "float32",
    *,
    check: bool = True,
) -> list[tuple[Tensor, Tensor]]:
    """Codes and scales of matrices [M, N] of one device.

    Args:
        weights: float32, float16 or bfloat16; values of a row adjacent. A stack of experts is its matrices: `*stack`.
        out: For each weight where its codes (float8_e4m3fn, adjacent along rows or along columns) and scales (float32)
            go: memory of its own, or views; None for new memory.
        block: Rows and columns of a block.
        scale_format: `ue8m0` rounds scales up to powers of two.
        check: Refuse NaN and infinity, for which a GPU is waited for; else they become NaN.

    Raises:
        Fp8Error: A weight is no matrix or holds NaN or infinity; results do not fit; it is named by its number.
        KernelError: There is a GPU, but its kernels cannot be used.
    """
    if not weights:
        return []
    for index, w in enumerate(weights):
        if w.dim() != 2 or w.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise Fp8Error(f"weight {index} must be a matrix of floats, got {w.dtype} {list(w.shape)}")
    if out is None:
        out = [_empty(w, block) for w in weights]
    if len(out) != len(weights):
        raise Fp8Error(f"out must have a pair for each of {len(weights)} weights, got {len(out)}")
    for index, (w, (q, scale)) in enumerate(zip(weights, out, strict=True)):
        _check_results(index, w, q, scale, block, weights[0].device)
    codes, scales = [q.view(torch.uint8) for q, _ in out], [scale for _, scale in out]
    bad = _quantize_many(list(weights), codes, scales, *block, WEIGHT_FLOOR, scale_format == "ue8m0")
    if check:
        for index, (w, place) in enumerate(zip(weights, bad.cpu(), strict=True)):
            try:
                check_finite(place[None], w.shape[1])
            except Fp8Error as error:
                raise Fp8Error(f"weight {index}: {error}") from None
    return list(out)


def expert_stack(
    num_experts: int, rows: Sequence[int], columns: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, list[list[tuple[Tensor, Tensor]]]]:
    """Memory for experts whose matrices, of `rows` each, lie below one another, as gate and up do: [E, 2 M, D].

    Returns:
        Codes [E, sum(rows), columns], scales [E, sum(rows) / 128, ceil(columns / 128)], and for each expert the views
        that belong to its matrices: what `quantize_many` takes as `out`.

    Raises:
        Fp8Error: A matrix that is not the last would end within a block of 128 rows.
    """
    if any(count % 128 for count in rows[:-1]):
        raise Fp8Error(f"rows of joined matrices must be multiples of 128, got {list(rows)}")
    height = sum(rows)
    q = torch.empty((num_experts, height, columns), dtype=torch.float8_e4m3fn, device=device)
    scale = torch.empty(scales_shape((num_experts, height, columns), (128, 128)), device=device)
    in_blocks = [-(-count // 128) for count in rows]
    views = [list(zip(e.split(list(rows)), s.split(in_blocks), strict=True)) for e, s in zip(q, scale, strict=True)]
    return q, scale, views


def _empty(w: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    q = torch.empty(w.shape, dtype=torch.float8_e4m3fn, device=w.device)
    return q, torch.empty(scales_shape(tuple(w.shape), block), device=w.device)


def _check_results(
    index: int, w: Tensor, q: Tensor, scale: Tensor, block: tuple[int, int], device: torch.device
) -> None:
    if q.dtype != torch.float8_e4m3fn or q.shape != w.shape:
        raise Fp8Error(f"codes of weight {index} must be float8_e4m3fn {list(w.shape)}, got {q.dtype} {list(q.shape)}")
    grid = scales_shape(tuple(w.shape), block)
    if scale.dtype != torch.float32 or tuple(scale.shape) != grid:
        raise Fp8Error(f"scales of weight {index} must be float32 {list(grid)}, got {scale.dtype} {list(scale.shape)}")
    if any(tensor.device != device for tensor in (w, q, scale)):
        raise Fp8Error(
            f"weight {index} and its results must be on {device}, got {w.device}, {q.device}, {scale.device}"
        )
