"""Quantise and dequantise matrices in e4m3 blocks with a scale each.

A value is `q * scale_inv` of its block; `scale_inv = max(amax, floor) / 448` in float32. Source: block-wise FP8 of
DeepSeek-V3 (arXiv:2412.19437), section 3.3, in the layout of the published GLM FP8 checkpoints.
"""

import sys
from typing import Any, Literal

import numpy as np

from glmcore._core import fp8_dequantize_bits, fp8_dequantize_f32, fp8_quantize_bits, fp8_quantize_f32
from glmcore.errors import Fp8Error

ScaleFormat = Literal["float32", "ue8m0"]
WEIGHT_FLOOR = 1e-10
"""Smallest amax of a weight block."""
ACTIVATION_FLOOR = 1e-4
"""Smallest amax of an activation group."""


def quantize_blocks(
    w: Any,
    block: tuple[int, int] = (128, 128),
    scale_format: ScaleFormat = "float32",
    *,
    not_finite: Literal["refuse", "propagate"] = "refuse",
    out: tuple[Any, Any] | None = None,
) -> tuple[Any, Any]:
    """Quantise a weight, [M, N] or a stack [E, M, N] whose matrices are blocked each on its own.

    Runs on all cores, or as many as the environment's RAYON_NUM_THREADS says; the result does not depend on it.

    Args:
        w: C-contiguous numpy array (float32, float16) or tensor (float32, float16, bfloat16), on the CPU or a GPU.
        block: Rows and columns of a block; blocks at the edges may be smaller.
        scale_format: `ue8m0` rounds scales up to powers of two.
        not_finite: What becomes of NaN and infinity: an error, for which a GPU is waited for, or NaN, with the scale of
            the block's finite values.
        out: Codes and scales of an earlier call of the same shape, written anew: fresh memory costs more than the
            work. On an error they hold no sense.

    Returns:
        Codes of the shape of `w` (uint8 for numpy, float8_e4m3fn for torch), and float32 scales, [ceil(M / rows),
        ceil(N / columns)] with the leading dimension of a stack.

    Raises:
        Fp8Error: The input has another type or shape, is not contiguous, or holds NaN or infinity.
        KernelError: The tensor is on a GPU whose kernels cannot be used.
    """
    return _quantize(w, block, WEIGHT_FLOOR, scale_format, not_finite, out)


def quantize_groups(
    x: Any,
    group: int = 128,
    scale_format: ScaleFormat = "float32",
    *,
    not_finite: Literal["refuse", "propagate"] = "refuse",
    out: tuple[Any, Any] | None = None,
) -> tuple[Any, Any]:
    """Quantise activations [M, K] in groups of `group` values of a row; arguments and errors as `quantize_blocks`."""
    return _quantize(x, (1, group), ACTIVATION_FLOOR, scale_format, not_finite, out)


def dequantize_blocks(
    q: Any, scale_inv: Any, block: tuple[int, int] = (128, 128), dtype: Any = None, *, out: Any = None
) -> Any:
    """Codes times scales, in float32 and then rounded to `dtype`: the inverse of `quantize_blocks`.

    Args:
        q: Codes, uint8 numpy or float8_e4m3fn torch, [M, N] or [E, M, N].
        scale_inv: Their scales, float32.
        block: As when quantised.
        dtype: numpy or torch float type of the result; None for that of `out`, or float32.
        out: Where the values go: contiguous, float32, float16 or bfloat16.

    Raises:
        Fp8Error: Shapes or types do not fit.
    """
    torch = _torch_of(q)
    if torch is not None and q.is_cuda:
        from glmcore.fp8 import ops  # it imports torch, which the caller has

        if out is not None:
            raise Fp8Error("on a GPU out must be None")
        return ops.dequantize_blocks(q.view(torch.uint8), scale_inv, *block, dtype or torch.float32)
    codes, scales = (q, scale_inv) if torch is None else (q.view(torch.uint8).numpy(), scale_inv.numpy())
    if codes.dtype != np.uint8 or codes.ndim not in (2, 3) or scales.ndim != codes.ndim:
        raise Fp8Error(f"q must be codes [M, N] or [E, M, N] with scales of as many dimensions, got {_describe(q)}")
    scales = np.ascontiguousarray(scales, np.float32)
    if out is None:
        direct = _is_direct(torch, dtype)
        out = _empty(torch, codes.shape, dtype if direct else None)
        _dequantize_into(torch, codes, scales, block, out)
        return out if direct else out.astype(dtype) if torch is None else out.to(dtype)
    if tuple(out.shape) != codes.shape or dtype not in (None, out.dtype) or not _is_direct(torch, out.dtype):
        raise Fp8Error(f"out must be float32, float16 or bfloat16 {list(codes.shape)}, got {_describe(out)}")
    _dequantize_into(torch, codes, scales, block, out)
    return out


def _is_direct(torch: Any, dtype: Any) -> bool:
    """Whether the core writes this type itself."""
    types = (np.float32, np.float16) if torch is None else (torch.float32, torch.float16, torch.bfloat16)
    return dtype is None or dtype in types


def _empty(torch: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return np.empty(shape, dtype or np.float32) if torch is None else torch.empty(shape, dtype=dtype or torch.float32)


def _dequantize_into(torch: Any, codes: np.ndarray, scales: np.ndarray, block: tuple[int, int], out: Any) -> None:
    array, is_bfloat16 = (out, False) if torch is None else _as_numpy(torch, out)
    for matrix, scale, values in zip(_matrices(codes), _matrices(scales), _matrices(array), strict=True):
        if values.dtype == np.float32:
            fp8_dequantize_f32(matrix, scale, block, values)
        else:
            fp8_dequantize_bits(matrix, scale, block, is_bfloat16, values.view(np.uint16))


def scales_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the scales of a weight of `shape`, [M, N] or [E, M, N]."""
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))


def _quantize(
    w: Any, block: tuple[int, int], floor: float, scale_format: str, not_finite: str, out: tuple[Any, Any] | None
) -> tuple[Any, Any]:
    if scale_format not in ("float32", "ue8m0"):
        raise Fp8Error(f"scale_format must be 'float32' or 'ue8m0', got {scale_format!r}")
    if not_finite not in ("refuse", "propagate"):
        raise Fp8Error(f"not_finite must be 'refuse' or 'propagate', got {not_finite!r}")
    if min(block) < 1:
        raise Fp8Error(f"block must have at least one row and one column, got {block}")
    torch = _torch_of(w)
    if torch is not None and w.is_cuda:
        return _quantize_on_gpu(w, block, floor, scale_format == "ue8m0", not_finite == "refuse", out)
    array, is_bfloat16 = (w, False) if torch is None else _as_numpy(torch, w)
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3):
        raise Fp8Error(f"expected a matrix or a stack of matrices, got {_describe(w)}")
    if not array.flags.c_contiguous:
        raise Fp8Error("the matrix must be C-contiguous: pass np.ascontiguousarray(w) or w.contiguous()")
    if not (is_bfloat16 or array.dtype in (np.float32, np.float16)):
        raise Fp8Error(f"values must be float32, float16 or bfloat16, got {array.dtype}")
    q, scale = _results(torch, array.shape, block, out)
    codes, scales = (q, scale) if torch is None else (q.view(torch.uint8).numpy(), scale.numpy())
    request = (block, floor, scale_format == "ue8m0", not_finite == "propagate")
    _quantize_matrices(array, is_bfloat16, codes, scales, request)
    return q, scale


def quantize_into(w: Any, block: tuple[int, int], floor: float, ue8m0: bool, q: Any, scale: Any) -> None:
    """Quantise a contiguous CPU tensor into a uint8 and a float32 one; NaN and infinity become NaN."""
    import torch

    array, is_bfloat16 = _as_numpy(torch, w)
    _quantize_matrices(array, is_bfloat16, q.numpy(), scale.numpy(), (block, floor, ue8m0, True))


def _quantize_matrices(
    array: np.ndarray, is_bfloat16: bool, codes: np.ndarray, scales: np.ndarray, request: Any
) -> None:
    for matrix, into, scales_into in zip(_matrices(array), _matrices(codes), _matrices(scales), strict=True):
        if matrix.dtype == np.float32:
            fp8_quantize_f32(matrix, into, scales_into, request)
        else:
            fp8_quantize_bits(matrix.view(np.uint16), is_bfloat16, into, scales_into, request)


def _quantize_on_gpu(
    w: Any, block: tuple[int, int], floor: float, ue8m0: bool, refuse: bool, out: tuple[Any, Any] | None
) -> tuple[Any, Any]:
    from glmcore.fp8 import ops  # it imports torch, which the caller has

    if w.dim() not in (2, 3) or out is not None:
        raise Fp8Error(f"on a GPU w must be a matrix or a stack of them and out None, got {_describe(w)}")
    q, scale, bad = ops.quantize_blocks(w.detach(), *block, floor, ue8m0)
    if refuse:
        ops.check_finite(bad, w.shape[-1])
    return q.view(sys.modules["torch"].float8_e4m3fn), scale


def _results(torch: Any, shape: tuple[int, ...], block: tuple[int, int], out: tuple[Any, Any] | None) -> Any:
    """Where codes and scales go."""
    grid = scales_shape(shape, block)
    if out is None:
        if torch is None:
            return np.empty(shape, np.uint8), np.empty(grid, np.float32)
        return torch.empty(shape, dtype=torch.float8_e4m3fn), torch.empty(grid)
    q, scale = out
    types = (np.uint8, np.float32) if torch is None else (torch.float8_e4m3fn, torch.float32)
    if (q.dtype, scale.dtype) != types or (tuple(q.shape), tuple(scale.shape)) != (shape, grid):
        got = f"{_describe(q)}, {_describe(scale)}"
        raise Fp8Error(f"out must be codes {list(shape)} and scales {list(grid)}, got {got}")
    return q, scale


def _matrices(array: np.ndarray) -> np.ndarray:
    """A stack of one or more matrices, without a copy."""
    return array[np.newaxis] if array.ndim == 2 else array


def _as_numpy(torch: Any, tensor: Any) -> tuple[np.ndarray, bool]:
    """The tensor's memory as an array; bfloat16, which numpy lacks, as its bits."""
    if tensor.device.type != "cpu":
        raise Fp8Error(f"the tensor must be on the CPU, got {tensor.device}")
    tensor = tensor.detach()
    if not tensor.is_contiguous():
        raise Fp8Error("the matrix must be C-contiguous: pass w.contiguous()")
    is_bfloat16 = tensor.dtype == torch.bfloat16
    return (tensor.view(torch.uint16) if is_bfloat16 else tensor).numpy(), is_bfloat16


def _torch_of(value: Any) -> Any:
    """The torch module if `value` is a tensor; torch is never imported here."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(value, torch.Tensor) else None


def _describe(value: Any) -> str:
    return f"{getattr(value, 'dtype', type(value).__name__)} {list(getattr(value, 'shape', []))}"
