"""Attention of new tokens to sequences whose keys and values lie in blocks of a common memory.

A sequence has a table of blocks; block i holds its tokens from `BLOCK * i` on. Sequences may share blocks, so a prefix
is held and computed once. Source: PagedAttention (arXiv:2309.06180), section 4.

Shapes: T new tokens of a step, B sequences, N blocks of the longest table, P blocks in all, G key-value heads,
C channels of a head, H query heads.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glmcore.model.blocks import outside_graphs
from glmcore.model.config import GlmConfig

BLOCK = 16
"""Tokens of a block: the lanes of a 512-bit vector of float32, so that one load meets the keys of a whole block."""


@dataclass
class PagedCache:
    """Keys and values of one layer. Keys lie channel by channel, so that a query meets a block without shuffles."""

    keys: Tensor
    """[P, G, C, BLOCK]."""
    values: Tensor
    """[P, G, BLOCK, C]."""

    @classmethod
    def empty(cls, config: GlmConfig, num_blocks: int, like: Tensor) -> "PagedCache":
        """Room for so many blocks, of the type and on the device of `like`. Memory comes into use as it is written."""
        heads, channels = config.num_key_value_heads, config.head_dim
        return cls(
            like.new_empty((num_blocks, heads, channels, BLOCK)), like.new_empty((num_blocks, heads, BLOCK, channels))
        )

    def copy_blocks(self, source: Tensor, target: Tensor) -> None:
        """Make blocks `target` [M] copies of blocks `source` [M]."""
        self.keys[target] = self.keys[source]
        self.values[target] = self.values[source]


@dataclass(frozen=True)
class PagedLayout:
    """What the new tokens of a step are: the last ones of B sequences, sequence after sequence."""

    cu_queries: np.ndarray
    """First new token of each sequence, and their number. int32 [B + 1]."""
    lengths: np.ndarray
    """Tokens of each sequence, the new ones included. int32 [B]."""
    tables: np.ndarray
    """Blocks of each sequence, int32 [B, N]; places behind its last block are not read."""
    device: torch.device | str = "cpu"

    def local(self, values: Tensor) -> Tensor:
        """This rank's rows of something that the whole step has: all of them."""
        return values

    @property
    def num_queries(self) -> np.ndarray:
        """New tokens of each sequence, int [B]."""
        return np.diff(self.cu_queries)

    @cached_property
    def positions(self) -> np.ndarray:
        """Position of each new token in its sequence, int64 [T]."""
        count = self.num_queries
        first = self.lengths - count - self.cu_queries[:-1]
        return np.arange(self.cu_queries[-1]) + np.repeat(first, count)

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Block of each new token, and its place in the block. int64 [T] each."""
        row = np.repeat(np.arange(len(self.lengths)), self.num_queries)
        block = self.tables[row, self.positions // BLOCK].astype(np.int64)
        return torch.from_numpy(block).to(self.device), torch.from_numpy(self.positions % BLOCK).to(self.device)


@outside_graphs
def attend_to_pages(query: Tensor, key: Tensor, value: Tensor, layout: PagedLayout, cache: PagedCache) -> Tensor:
    """Add the new tokens to the cache, then attend from each to its sequence up to itself.

    Args:
        query: [T, H, C].
        key: [T, G, C]; G divides H.
        value: [T, G, C].
        layout: What the tokens are.
        cache: Of this layer.

    Returns:
        [T, H, C].
    """
    block, place = layout.places
    cache.keys[block, :, :, place] = key
    cache.values[block, :, place] = value
    out = torch.empty_like(query)
    for count in np.unique(layout.num_queries).tolist():
        rows = np.flatnonzero(layout.num_queries == count)
        tokens = torch.from_numpy(layout.cu_queries[rows][:, None] + np.arange(count)).to(query.device)  # [b, count]
        tables = layout.tables[rows, : -(-int(layout.lengths[rows].max()) // BLOCK)]
        table = torch.from_numpy(tables.astype(np.int64)).to(query.device)  # [b, n]
        keys = cache.keys[table].permute(0, 2, 1, 4, 3).flatten(2, 3)  # [b, G, n * BLOCK, C]
        values = cache.values[table].transpose(1, 2).flatten(2, 3)
        position = torch.from_numpy(layout.positions).to(query.device)[tokens]  # [b, count]
        place = torch.arange(keys.shape[2], device=query.device)
        visible = place <= position[:, None, :, None]  # [b, 1, count, n * BLOCK]
        # Nobody has written what nobody sees, and no weight makes a NaN zero.
        unwritten = (place > position[:, -1:])[:, None, :, None]
        keys, values = keys.masked_fill(unwritten, 0), values.masked_fill(unwritten, 0)
        attended = F.scaled_dot_product_attention(
            query[tokens].transpose(1, 2), keys, values, attn_mask=visible, enable_gqa=True
        )
        out[tokens.flatten()] = attended.transpose(1, 2).flatten(0, 1)
    return out
