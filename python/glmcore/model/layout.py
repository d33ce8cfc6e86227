"""Where the documents of a packed batch lie.

Shapes: T tokens, N documents, S padded slots.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

BUCKET = 32
"""Documents are padded to a multiple of this, so that few distinct lengths remain and each is one batched call."""


@dataclass(frozen=True)
class DocumentLayout:
    """The bounds of the documents among the flat tokens."""

    cu_seqlens: Tensor
    """First token of each document, and the number of tokens. int32 [N + 1], on the device of the tokens."""
    lengths: tuple[int, ...]
    """Tokens of each document, in order."""

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: np.ndarray) -> "DocumentLayout":
        """Layout of documents with bounds `cu_seqlens`, int [N + 1], starting at 0."""
        return cls(torch.from_numpy(cu_seqlens.astype(np.int32)), tuple(np.diff(cu_seqlens).tolist()))

    @cached_property
    def padded(self) -> "PaddedLayout":
        """The plan by which the tokens become batches of equally long documents, made when first asked for."""
        return PaddedLayout.from_lengths(np.array(self.lengths, np.int64), self.cu_seqlens.device)

    @property
    def max_length(self) -> int:
        """Tokens of the longest document, 0 without any."""
        return max(self.lengths, default=0)

    def to(self, device: torch.device) -> "DocumentLayout":
        """The same layout with its tensor on `device`."""
        return replace(self, cu_seqlens=self.cu_seqlens.to(device))


@dataclass(frozen=True)
class Bucket:
    """Documents of one padded length, as a slice of the padded slots."""

    start: int
    """First slot."""
    num_documents: int
    length: int
    """Slots of each document."""


@dataclass(frozen=True)
class PaddedLayout:
    """The plan by which flat tokens become batches of equally long documents and back.

    A causal mask hides padding at the end of a document from every real token, so no mask is needed.
    """

    slot_token: Tensor
    """Token in each slot; 0 where the slot is padding. int64 [S]."""
    token_slot: Tensor
    """Slot of each token. int64 [T]."""
    slot_is_padding: Tensor
    """bool [S]."""
    buckets: tuple[Bucket, ...]

    @classmethod
    def from_lengths(cls, lengths: np.ndarray, device: torch.device) -> "PaddedLayout":
        """Plan for documents of `lengths`, int64 [N].

        A document keeps the padded length that it has alone, so packing changes no sum inside it.
        """
        padded = -(-lengths // BUCKET) * BUCKET
        order = np.argsort(padded, kind="stable")
        first_slot = np.empty_like(padded)
        first_slot[order] = np.cumsum(padded[order]) - padded[order]
        first_token = np.cumsum(lengths) - lengths
        num_slots, num_tokens = int(padded.sum()), int(lengths.sum())

        token_slot = np.arange(num_tokens) + np.repeat(first_slot - first_token, lengths)
        slot_token = np.zeros(num_slots, np.int64)
        slot_token[token_slot] = np.arange(num_tokens)
        slot_is_padding = np.ones(num_slots, np.bool_)
        slot_is_padding[token_slot] = False

        buckets = []
        start = 0
        sizes, counts = np.unique(padded[padded > 0], return_counts=True)
        for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
            buckets.append(Bucket(start, count, size))
            start += count * size
        return cls(
            torch.from_numpy(slot_token).to(device),
            torch.from_numpy(token_slot).to(device),
            torch.from_numpy(slot_is_padding).to(device),
            tuple(buckets),
        )
