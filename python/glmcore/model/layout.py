"""Where the documents of a packed batch lie, and how to batch them for attention.

Shapes: T tokens, N documents, S padded slots.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

BUCKET = 32
"""Documents are padded to a multiple of this, so that few distinct lengths remain and each is one batched call."""


@dataclass(frozen=True)
class Bucket:
    """Documents of one padded length, as a slice of the padded slots."""

    start: int
    """First slot."""
    num_documents: int
    length: int
    """Slots of each document."""


@dataclass(frozen=True)
class DocumentLayout:
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
    lengths: tuple[int, ...]
    """Tokens of each document, in order."""

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: np.ndarray) -> "DocumentLayout":
        """Plan for documents with bounds `cu_seqlens`, int [N + 1], starting at 0.

        A document keeps the padded length that it has alone, so packing changes no sum inside it.
        """
        starts = cu_seqlens[:-1].astype(np.int64)
        lengths = np.diff(cu_seqlens).astype(np.int64)
        padded = -(-lengths // BUCKET) * BUCKET
        order = np.argsort(padded, kind="stable")
        first_slot = np.cumsum(padded[order]) - padded[order]
        num_slots, num_tokens = int(padded.sum()), int(cu_seqlens[-1])

        token_slot = np.empty(num_tokens, np.int64)
        for document, slot in zip(order, first_slot, strict=True):
            start, length = starts[document], lengths[document]
            token_slot[start : start + length] = np.arange(slot, slot + length)
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
            torch.from_numpy(slot_token),
            torch.from_numpy(token_slot),
            torch.from_numpy(slot_is_padding),
            tuple(buckets),
            tuple(lengths.tolist()),
        )

    def local(self, values: Tensor) -> Tensor:
        """This rank's rows of something that the whole batch has: all of them, since no rank shares the documents."""
        return values

    def to(self, device: torch.device) -> "DocumentLayout":
        """The same plan with its tensors on `device`."""
        return replace(
            self,
            slot_token=self.slot_token.to(device),
            token_slot=self.token_slot.to(device),
            slot_is_padding=self.slot_is_padding.to(device),
        )
