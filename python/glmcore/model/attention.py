"""Grouped-query attention with QK-norm and partial rotary embedding.

Shapes: T tokens, D hidden size, H query heads, G key-value heads, C channels of a head.
"""

from torch import Tensor, nn

from glmcore.model.config import GlmConfig
from glmcore.model.documents import attend_within_documents
from glmcore.model.layout import DocumentLayout
from glmcore.model.norm import RMSNorm
from glmcore.model.paged import PagedCache, PagedLayout, attend_to_pages
from glmcore.model.parallel.context import ContextLayout, attend_over_ranks
from glmcore.model.rope import apply_rotary
from glmcore.model.tree import TreeLayout
from glmcore.model.tree_attention import attend_along_paths

Layout = DocumentLayout | TreeLayout | ContextLayout | PagedLayout
"""What the tokens are: documents, a forest of prefixes, a rank's part of documents that several ranks share, or new
tokens of sequences that are in a cache."""


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
        layout: Layout,
        cache: PagedCache | None = None,
    ) -> Tensor:
        """Attend within each document of `layout`, along the paths of a forest, or to the sequences of a cache.

        Args:
            x: [T, D], of this rank's tokens.
            angles: cos and sin of `rotary_angles`.
            layout: What the flat tokens are.
            cache: With a `PagedLayout` alone: what the sequences' earlier tokens have left; the new ones are added.

        Returns:
            [T, D].
        """
        query, key, value = self._project(x, angles)
        if isinstance(layout, PagedLayout):
            if cache is None:
                raise ValueError("new tokens of sequences need the cache of the earlier ones")
            return self.o_proj(attend_to_pages(query, key, value, layout, cache).flatten(1))
        if isinstance(layout, ContextLayout):
            return self.o_proj(attend_over_ranks(query, key, value, layout).flatten(1))
        if isinstance(layout, TreeLayout):
            return self.o_proj(attend_along_paths(query, key, value, layout).flatten(1))
        return self.o_proj(attend_within_documents(query, key, value, layout).flatten(1))

    def _project(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        query = self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))  # [T, H, C]
        key = self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))  # [T, G, C]
        value = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))  # [T, G, C]
        if self.use_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        return apply_rotary(query, *angles), apply_rotary(key, *angles), value
