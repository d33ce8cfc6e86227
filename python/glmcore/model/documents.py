"""Causal attention in which every document of a packed batch sees itself alone.

Shapes: T tokens, H query heads, G key-value heads, C channels of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from glmcore.model import attention_ops
from glmcore.model.blocks import outside_graphs
from glmcore.model.layout import DocumentLayout
from glmcore.model.routing import gather_rows


def attend_within_documents(query: Tensor, key: Tensor, value: Tensor, layout: DocumentLayout) -> Tensor:
    """Softmax attention with scale `C ** -0.5` over the tokens of the own document up to the own place.

    By the Rust core on the CPU, by PyTorch's varlen kernels on a GPU in half precision, and for what these two do not
    know by `attend_padded`. Of the three only the last has to be padded.

    Args:
        query: [T, H, C].
        key: [T, G, C]; G divides H.
        value: [T, G, C].
        layout: The documents, which cover the T tokens.

    Returns:
        [T, H, C].
    """
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _on_gpu(query, key, value, layout)
    if query.device.type == "cpu" and query.dtype in attention_ops.DTYPES:
        return attention_ops.attend_within_documents(query, key, value, layout.cu_seqlens)[0]
    return attend_padded(query, key, value, layout)


def _on_gpu(query: Tensor, key: Tensor, value: Tensor, layout: DocumentLayout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # The kernel starts as many blocks as `max_q` needs and the superfluous ones end at once; a power of two keeps the
    # number of graphs small that a compiled block needs.
    longest = 1 << max(layout.max_length - 1, 0).bit_length()
    bounds = layout.cu_seqlens
    return varlen_attn(query, key, value, bounds, bounds, longest, longest, window_size=(-1, 0), enable_gqa=True)  # pyright: ignore[reportReturnType]


@outside_graphs
def attend_padded(query: Tensor, key: Tensor, value: Tensor, layout: DocumentLayout) -> Tensor:
    """The same by PyTorch's dense attention over batches of documents of nearly one length, on any device.

    A document is padded to a multiple of `BUCKET` tokens.
    """
    plan = layout.padded
    # Padding slots repeat token 0. No real token sees them, so their gradient is zero and dropping it is exact.
    query, key, value = (gather_rows(part, plan.slot_token, plan.token_slot) for part in (query, key, value))
    parts = [query[:0]]
    for bucket in plan.buckets:
        rows = slice(bucket.start, bucket.start + bucket.num_documents * bucket.length)
        q, k, v = (
            part[rows].unflatten(0, (bucket.num_documents, bucket.length)).transpose(1, 2)
            for part in (query, key, value)
        )  # [N, heads, L, C]
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        parts.append(attended.transpose(1, 2).flatten(0, 1))
    return gather_rows(torch.cat(parts), plan.token_slot, plan.slot_token, plan.slot_is_padding)
