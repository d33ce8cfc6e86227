"""Attention in a forest of prefixes: every token sees the path to it and itself.

Shapes: T tokens, H query heads, G key-value heads, C channels of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from glmcore.model import attention_ops
from glmcore.model.blocks import outside_graphs
from glmcore.model.routing import gather_rows
from glmcore.model.tree import TreeLayout


def attend_along_paths(query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout) -> Tensor:
    """Softmax attention with scale `C ** -0.5` of each token to those on the path to it and to itself.

    By the Rust core on the CPU, elsewhere by `attend_along_padded_paths`.

    Args:
        query: [T, H, C].
        key: [T, G, C]; G divides H.
        value: [T, G, C].
        layout: The forest.

    Returns:
        [T, H, C].
    """
    if query.device.type != "cpu" or query.dtype not in attention_ops.DTYPES:
        return attend_along_padded_paths(query, key, value, layout)
    # A path is a part of its run's document. What its tokens attend to there they attend to in their own run too, so
    # only a run's own tokens are taken from it, and the others have no gradient.
    runs = layout.runs
    query = gather_rows(query, runs.token, runs.place)
    key, value = key.index_select(0, runs.token), value.index_select(0, runs.token)
    attended = attention_ops.attend_within_documents(query, key, value, runs.cu_seqlens)[0]
    return gather_rows(attended, runs.place, runs.token, runs.is_path)


@outside_graphs
def attend_along_padded_paths(query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout) -> Tensor:
    """The same by PyTorch's dense attention over batches of runs of nearly one length, on any device."""
    # No real token sees a padding slot, so its gradient is zero and dropping it is exact.
    # A key is taken once for every run that sees it.
    num_heads, head_dim = query.shape[1:]
    query = gather_rows(query, layout.query_token, layout.token_slot)
    key, value = key.index_select(0, layout.key_token), value.index_select(0, layout.key_token)
    parts = []
    for bucket in layout.buckets:
        size = bucket.num_runs * bucket.num_queries
        q = query[bucket.query_start : bucket.query_start + size]
        q = q.view(bucket.num_runs, bucket.num_queries, -1, head_dim).transpose(1, 2)  # [N, H, L, C]
        k, v = (
            part[bucket.key_start : bucket.key_start + bucket.num_runs * bucket.num_keys]
            .view(bucket.num_runs, bucket.num_keys, -1, head_dim)
            .transpose(1, 2)
            for part in (key, value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bucket.visible, enable_gqa=True)
        parts.append(attended.transpose(1, 2).reshape(size, num_heads, head_dim))
    return gather_rows(torch.cat(parts), layout.token_slot, layout.query_token, layout.slot_is_padding)
