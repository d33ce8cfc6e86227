"""Quantise and dequantise matrices in e4m3 blocks with a scale each.

A value is `q * scale_inv` of its block; `scale_inv = max(amax, floor) / 448` in float32. Source: block-wise FP8 of
DeepSeek-V3 (arXiv:2412.19437), section 3.3, in the layout of the published GLM FP8 checkpoints.
"""

import sys
from typing import Any, Literal

import numpy as np

from glmcore._core import fp8_dequantize, fp8_quantize_bits, fp8_quantize_f32
from glmcore.errors import Fp8Error

ScaleFormat = Literal["float32", "ue8m0"]
WEIGHT_FLOOR = 1e-10
"""Smallest amax of a weight block."""
ACTIVATION_FLOOR = 1e-4
"""Smallest amax of an activation group."""


def quantize_blocks(
    w: Any, block: tuple[int, int] = (128, 128), scale_format: ScaleFormat = "float32"
) -> tuple[Any, Any]:
    """Quantise a weight, [M, N] or a stack [E, M, N] whose matrices are blocked each on its own.

    Args:
        w: C-contiguous numpy array (float32, float16) or CPU tensor (float32, float16, bfloat16).
        block: Rows and columns of a block; blocks at the edges may be smaller.
        scale_format: `ue8m0` rounds scales up to powers of two.

    Returns:
        Codes of the shape of `w` (uint8 for numpy, float8_e4m3fn for torch), and float32 scales, [ceil(M / rows),
        ceil(N / columns)] with the leading dimension of a stack.

    Raises:
        Fp8Error: The input has another type or shape, is not contiguous, or holds NaN or infinity.
    """
    return _quantize(w, block, WEIGHT_FLOOR, scale_format)


def quantize_groups(x: Any, group: int = 128, scale_format: ScaleFormat = "float32") -> tuple[Any, Any]:
    """Quantise activations [M, K] in groups of `group` values of a row; arguments and errors as `quantize_blocks`."""
    return _quantize(x, (1, group), ACTIVATION_FLOOR, scale_format)


def dequantize_blocks(q: Any, scale_inv: Any, block: tuple[int, int] = (128, 128), dtype: Any = None) -> Any:
    """Codes times scales: the inverse of `quantize_blocks`.

    Args:
        q: Codes, uint8 numpy or float8_e4m3fn torch, [M, N] or [E, M, N].
        scale_inv: Their scales, float32.
        block: As when quantised.
        dtype: numpy or torch float type of the result; None for float32.

    Raises:
        Fp8Error: Shapes or types do not fit.
    """
    torch = _torch_of(q)
    codes, scales = (q, scale_inv) if torch is None else (q.view(torch.uint8).numpy(), scale_inv.numpy())
    if codes.dtype != np.uint8 or codes.ndim not in (2, 3) or scales.ndim != codes.ndim:
        raise Fp8Error(f"q must be codes [M, N] or [E, M, N] with scales of as many dimensions, got {_describe(q)}")
    stacked = codes.reshape(-1, *codes.shape[-2:])
    parts = [
        fp8_dequantize(matrix, np.ascontiguousarray(scale, np.float32).ravel(), block)
        for matrix, scale in zip(stacked, scales.reshape(len(stacked), *scales.shape[-2:]), strict=True)
    ]
    values = parts[0] if codes.ndim == 2 else np.stack(parts) if parts else np.empty(codes.shape, np.float32)
    if torch is None:
        return values if dtype is None else values.astype(dtype)
    tensor = torch.from_numpy(values)
    return tensor if dtype is None else tensor.to(dtype)


def _quantize(w: Any, block: tuple[int, int], floor: float, scale_format: ScaleFormat) -> tuple[Any, Any]:
    if scale_format not in ("float32", "ue8m0"):
        raise Fp8Error(f"scale_format must be 'float32' or 'ue8m0', got {scale_format!r}")
    if min(block) < 1:
        raise Fp8Error(f"block must have at least one row and one column, got {block}")
    torch = _torch_of(w)
    array, is_bfloat16 = (w, False) if torch is None else _as_numpy(torch, w)
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3):
        raise Fp8Error(f"expected a matrix or a stack of matrices, got {_describe(w)}")
    if not array.flags.c_contiguous:
        raise Fp8Error("the matrix must be C-contiguous: pass np.ascontiguousarray(w) or w.contiguous()")
    stacked = array.reshape(-1, *array.shape[-2:])
    parts = [_quantize_matrix(matrix, is_bfloat16, block, floor, scale_format == "ue8m0") for matrix in stacked]
    rows, columns = array.shape[-2:]
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    if array.ndim == 2:
        q, scale = parts[0][0], parts[0][1].reshape(grid)
    else:
        q = np.stack([part[0] for part in parts]) if parts else np.empty(array.shape, np.uint8)
        scale = np.stack([part[1].reshape(grid) for part in parts]) if parts else np.empty((0, *grid), np.float32)
    if torch is None:
        return q, scale
    return torch.from_numpy(q).view(torch.float8_e4m3fn), torch.from_numpy(scale)


def _quantize_matrix(
    matrix: np.ndarray, is_bfloat16: bool, block: tuple[int, int], floor: float, ue8m0: bool
) -> tuple[np.ndarray, np.ndarray]:
    if matrix.dtype == np.float32:
        return fp8_quantize_f32(matrix, block, floor, ue8m0)
    if matrix.dtype == np.float16:
        return fp8_quantize_bits(matrix.view(np.uint16), False, block, floor, ue8m0)
    if is_bfloat16:
        return fp8_quantize_bits(matrix, True, block, floor, ue8m0)
    raise Fp8Error(f"values must be float32, float16 or bfloat16, got {matrix.dtype}")


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
