"""Attention within documents on the CPU as an operator of torch: `torch.ops.glmcore.attend_within_documents`.

The Rust core computes it: documents need no padding and cost what their own lengths cost, nothing of the size of a
squared length is held, and a document has the same bits alone and among others, on any number of threads.

Shapes: T tokens, N documents, H query heads, G key-value heads, C channels of a head.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from glmcore import _core

_FUNCTIONS: dict[torch.dtype, tuple[Any, Any]] = {
    torch.float32: (_core.attention_forward_f32, _core.attention_backward_f32),
    torch.float64: (_core.attention_forward_f64, _core.attention_backward_f64),
    torch.bfloat16: (_core.attention_forward_bf16, _core.attention_backward_bf16),
}
DTYPES = tuple(_FUNCTIONS)
"""Types of queries, keys and values; bfloat16 is computed in float32."""


@torch.library.custom_op("glmcore::attend_within_documents", mutates_args=(), device_types="cpu")
def attend_within_documents(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Result [T, H, C], and the logarithm of the sum of exponentials of each query's scores, [H, T].

    Args:
        query: float32, float64 or bfloat16 [T, H, C].
        key: [T, G, C]; G divides H.
        value: [T, G, C].
        cu_seqlens: int32 [N + 1].
    """
    query, key, value = (part.contiguous() for part in (query, key, value))
    out = torch.empty_like(query)
    log_sum = query.new_empty(query.shape[1], query.shape[0], dtype=_wide(query.dtype))
    forward, _ = _FUNCTIONS[query.dtype]
    inputs = (_flat(query), _flat(key), _flat(value))
    forward(inputs, _batch(query, key, cu_seqlens), _flat(out), _flat(log_sum))
    return out, log_sum


@attend_within_documents.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    return out, query.new_empty(query.shape[1], query.shape[0], dtype=_wide(query.dtype))


@torch.library.custom_op("glmcore::attend_within_documents_backward", mutates_args=(), device_types="cpu")
def _backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad: Tensor, log_sum: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = tuple(part.contiguous() for part in (query, key, value, out, grad))
    grads = tuple(torch.empty_like(part) for part in inputs[:3])
    _, backward = _FUNCTIONS[query.dtype]
    backward(
        tuple(map(_flat, inputs)), _flat(log_sum), _batch(query, key, cu_seqlens), tuple(_flat(part) for part in grads)
    )
    return grads[0], grads[1], grads[2]


@_backward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad: Tensor, log_sum: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = [torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in (query, key, value)]
    return grads[0], grads[1], grads[2]


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, cu_seqlens = inputs
    out, log_sum = output
    ctx.save_for_backward(query, key, value, out, log_sum, cu_seqlens)


def _gradients(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
    query, key, value, out, log_sum, cu_seqlens = ctx.saved_tensors
    return *_backward(query, key, value, out, grad, log_sum, cu_seqlens), None


attend_within_documents.register_autograd(_gradients, setup_context=_keep)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _batch(query: Tensor, key: Tensor, cu_seqlens: Tensor) -> tuple[np.ndarray, tuple[int, int, int], int]:
    shape = (query.shape[1], key.shape[1], query.shape[2])
    return cu_seqlens.numpy(), shape, torch.get_num_threads()


def _flat(tensor: Tensor) -> np.ndarray:
    """The same memory as a numpy array, bfloat16 as its bits."""
    bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    return bits.detach().flatten().numpy()
