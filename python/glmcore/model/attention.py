"""Grouped-query attention with QK-norm and partial rotary embedding.

Shapes: T tokens, D hidden size, H query heads, G key-value heads, C channels of a head, B sequences.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glmcore.model.blocks import outside_graphs
from glmcore.model.config import GlmConfig
from glmcore.model.documents import attend_within_documents
from glmcore.model.layout import DocumentLayout
from glmcore.model.norm import RMSNorm
from glmcore.model.rope import apply_rotary
from glmcore.model.routing import gather_rows
from glmcore.model.tree import TreeLayout


@dataclass
class KeyValueCache:
    """Keys and values of B sequences in one layer, each [B, G, max_length, C]."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Causal attention in which every document sees itself alone."""

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        hidden, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(hidden, self.num_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, self.num_kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden, self.num_kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, hidden, bias=False)
        self.use_qk_norm = config.use_qk_norm
        if config.use_qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        layout: DocumentLayout | TreeLayout,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Attend within each document of `layout`, or along the paths of a forest.

        Args:
            x: [T, D].
            angles: cos and sin of `rotary_angles`.
            layout: Documents of the flat tokens, or the forest that they are.
            cache: If given, document b's keys and values are also stored as its sequence b (prefill).

        Returns:
            [T, D].
        """
        query, key, value = self._project(x, angles)
        if isinstance(layout, TreeLayout):
            if cache is not None:
                raise ValueError("a cache holds sequences: prefill documents, not a forest")
            return self.o_proj(self._attend_along_paths(query, key, value, layout))
        if cache is not None:
            _store_documents(cache, key, value, layout)
        return self.o_proj(attend_within_documents(query, key, value, layout).flatten(1))

    @outside_graphs
    def _attend_along_paths(self, query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout) -> Tensor:
        """Each run of the forest attends to the path to it and to itself, [T, H * C]."""
        # No real token sees a padding slot, so its gradient is zero and dropping it is exact.
        # A key is taken once for every run that sees it.
        query = gather_rows(query, layout.query_token, layout.token_slot)
        key, value = key.index_select(0, layout.key_token), value.index_select(0, layout.key_token)
        parts = []
        for bucket in layout.buckets:
            size = bucket.num_runs * bucket.num_queries
            q = query[bucket.query_start : bucket.query_start + size]
            q = q.view(bucket.num_runs, bucket.num_queries, -1, self.head_dim).transpose(1, 2)  # [N, H, L, C]
            k, v = (
                part[bucket.key_start : bucket.key_start + bucket.num_runs * bucket.num_keys]
                .view(bucket.num_runs, bucket.num_keys, -1, self.head_dim)
                .transpose(1, 2)
                for part in (key, value)
            )
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bucket.visible, enable_gqa=True)
            parts.append(attended.transpose(1, 2).reshape(size, self.num_heads * self.head_dim))
        return gather_rows(torch.cat(parts), layout.token_slot, layout.query_token, layout.slot_is_padding)

    def decode(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        position_ids: Tensor,
        visible: Tensor,
        cache: KeyValueCache,
    ) -> Tensor:
        """Attend from one new token of each of B sequences to that sequence's cache, after adding the token to it.

        Args:
            x: [B, D].
            angles: cos and sin at `position_ids`.
            position_ids: Position of the new token in each sequence, [B].
            visible: True at the cache places a sequence may see, its new token's included, bool [B, 1, 1, L].
            cache: At least L places for each sequence.

        Returns:
            [B, D].
        """
        query, key, value = self._project(x, angles)
        rows = torch.arange(x.shape[0], device=x.device)
        cache.keys[rows, :, position_ids] = key
        cache.values[rows, :, position_ids] = value
        length = visible.shape[-1]
        attended = F.scaled_dot_product_attention(
            query[:, :, None],
            cache.keys[:, :, :length],
            cache.values[:, :, :length],
            attn_mask=visible,
            enable_gqa=True,
        )  # [B, H, 1, C]
        return self.o_proj(attended.flatten(1))

    def _project(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        query = self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))  # [T, H, C]
        key = self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))  # [T, G, C]
        value = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))  # [T, G, C]
        if self.use_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        return apply_rotary(query, *angles), apply_rotary(key, *angles), value


@outside_graphs
def _store_documents(cache: KeyValueCache, key: Tensor, value: Tensor, layout: DocumentLayout) -> None:
    start = 0
    for row, length in enumerate(layout.lengths):
        cache.keys[row, :, :length] = key[start : start + length].transpose(0, 1)
        cache.values[row, :, :length] = value[start : start + length].transpose(0, 1)
        start += length
