"""Where the tokens of a prefix forest lie, and how to batch them for attention.

Shapes: T tokens, R runs, Q query slots, K key slots.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from glmcore.model.layout import BUCKET
from glmcore.prefixes import PrefixForest


@dataclass(frozen=True)
class TreeBucket:
    """Runs of one padded length behind prefixes of one padded length."""

    query_start: int
    """First query slot."""
    key_start: int
    """First key slot."""
    num_runs: int
    num_queries: int
    """Query slots of each run."""
    num_keys: int
    """Key slots of each run: its prefix, padded in front, then the run."""
    visible: Tensor
    """True where a query sees a key, bool [runs, 1, queries, keys]."""


@dataclass(frozen=True)
class RunDocuments:
    """Each run of a forest as a document: the path to it, then its own tokens. S tokens in all."""

    token: Tensor
    """The forest's token in each place. int64 [S]."""
    place: Tensor
    """Where each token of the forest is its run's own. int64 [T]."""
    is_path: Tensor
    """Whether a place is of a path. bool [S]."""
    cu_seqlens: Tensor
    """Bounds of the documents. int32 [R + 1]."""

    @classmethod
    def of(cls, paths: Sequence[np.ndarray], own: Sequence[np.ndarray]) -> "RunDocuments":
        """From the tokens of the path to each run, and of each run."""
        token = np.concatenate([part for run in zip(paths, own, strict=True) for part in run] or [np.zeros(0, int)])
        lengths = np.array([(len(path), len(run)) for path, run in zip(paths, own, strict=True)], int).reshape(-1)
        is_path = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
        return cls(
            torch.from_numpy(token.astype(np.int64)),
            torch.from_numpy(np.flatnonzero(~is_path)),  # runs lie in the order of the forest's tokens
            torch.from_numpy(is_path),
            torch.from_numpy(np.concatenate(([0], np.cumsum(lengths)[1::2])).astype(np.int32)),
        )


@dataclass(frozen=True)
class TreeLayout:
    """The plan by which the tokens of a forest become batches of queries and keys, and back.

    In depth-first order the forest falls into runs, each a path that goes down without a break: the first sample of a
    tree whole, of every other the part that no sample before it has. A run's queries are its own tokens; its keys are
    the path from the root to it and its own tokens. So the projections, the feed-forward layers and the queries of a
    shared prefix are computed once, and only its keys and values are repeated.
    """

    query_token: Tensor
    """Token in each query slot; 0 where the slot is padding. int64 [Q]."""
    token_slot: Tensor
    """Query slot of each token. int64 [T]."""
    slot_is_padding: Tensor
    """bool [Q]."""
    key_token: Tensor
    """Token in each key slot; 0 where the slot is padding. int64 [K]."""
    buckets: tuple[TreeBucket, ...]
    parent: Tensor
    """The token before each one, -1 for first tokens. int64 [T]."""
    runs: "RunDocuments"
    """The same without padding, for attention that knows documents of any length."""

    @classmethod
    def from_parents(cls, parent: np.ndarray) -> "TreeLayout":
        """Plan for a forest in depth-first order.

        Args:
            parent: Place of the token before each, -1 for first tokens, int [T].
        """
        tokens = np.arange(len(parent))
        starts = np.flatnonzero(parent != tokens - 1) if len(parent) else tokens
        starts = np.union1d(starts, tokens[:1])
        ends = np.append(starts[1:], len(parent))
        paths = [_path(parent, starts, start) for start in starts]
        queries = _padded(ends - starts)
        prefixes = _padded(np.array([len(path) for path in paths], np.int64))

        query_token, key_token, buckets = [], [], []
        token_slot = np.empty(len(parent), np.int64)
        query_start = key_start = 0
        order = np.lexsort((prefixes, queries))
        for group in np.split(order, _changes(queries[order], prefixes[order])):
            if not len(group):
                continue
            num_queries, num_prefix = int(queries[group[0]]), int(prefixes[group[0]])
            visible = np.zeros((len(group), 1, num_queries, num_prefix + num_queries), np.bool_)
            visible[..., num_prefix:] = np.tri(num_queries, dtype=np.bool_)
            for i, run in enumerate(group):
                own, path = tokens[starts[run] : ends[run]], paths[run]
                token_slot[own] = query_start + i * num_queries + np.arange(len(own))
                query_token += [own, np.zeros(num_queries - len(own), np.int64)]
                key_token += [np.zeros(num_prefix - len(path), np.int64), path]
                key_token += [own, np.zeros(num_queries - len(own), np.int64)]
                visible[i, :, :, num_prefix - len(path) : num_prefix] = True
            num_keys = num_prefix + num_queries
            buckets.append(
                TreeBucket(query_start, key_start, len(group), num_queries, num_keys, torch.from_numpy(visible))
            )
            query_start += len(group) * num_queries
            key_start += len(group) * num_keys
        slot_is_padding = np.ones(query_start, np.bool_)
        slot_is_padding[token_slot] = False
        return cls(
            torch.from_numpy(np.concatenate([*query_token, tokens[:0]])),
            torch.from_numpy(token_slot),
            torch.from_numpy(slot_is_padding),
            torch.from_numpy(np.concatenate([*key_token, tokens[:0]])),
            tuple(buckets),
            torch.from_numpy(parent.astype(np.int64)),
            RunDocuments.of(paths, np.split(tokens, starts[1:])[: len(paths)]),
        )

    @classmethod
    def from_forest(cls, forest: PrefixForest) -> "TreeLayout":
        """Plan for a forest."""
        return cls.from_parents(forest.parent)

    def without_first_tokens(self) -> tuple["TreeLayout", Tensor]:
        """The forest's tokens that have one before them, as a forest of their own, and their places, int64 [T']."""
        kept = (self.parent >= 0).nonzero().squeeze(1)
        place = self.parent.new_full((len(self.parent) + 1,), -1)
        place[kept] = torch.arange(len(kept), device=kept.device)  # the last entry stays -1, for a parent of -1
        parent = place[self.parent[kept]]
        return TreeLayout.from_parents(parent.cpu().numpy()).to(kept.device), kept

    def local(self, values: Tensor) -> Tensor:
        """This rank's rows of something that the whole forest has: all of them, since no rank shares the forest."""
        return values

    def to(self, device: torch.device) -> "TreeLayout":
        """The same plan with its tensors on `device`."""
        return replace(
            self,
            query_token=self.query_token.to(device),
            token_slot=self.token_slot.to(device),
            slot_is_padding=self.slot_is_padding.to(device),
            key_token=self.key_token.to(device),
            buckets=tuple(replace(bucket, visible=bucket.visible.to(device)) for bucket in self.buckets),
            parent=self.parent.to(device),
            runs=RunDocuments(**{name: part.to(device) for name, part in vars(self.runs).items()}),
        )


def tree_mask(subtree_end: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask of a forest for `torch.nn.attention.flex_attention.create_block_mask`.

    Args:
        subtree_end: `PrefixForest.subtree_end`, int [T], on the device of the attention.
    """

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < subtree_end[key])

    return visible


def _path(parent: np.ndarray, starts: np.ndarray, start: int) -> np.ndarray:
    """Tokens before the run that begins at `start`, from the root on; goes back a run at a time."""
    parts = []
    token = int(parent[start])
    while token >= 0:
        first = int(starts[np.searchsorted(starts, token, side="right") - 1])
        parts.append(np.arange(first, token + 1))
        token = int(parent[first])
    return np.concatenate([*parts[::-1], np.arange(0)])


def _padded(lengths: np.ndarray) -> np.ndarray:
    return -(-lengths // BUCKET) * BUCKET


def _changes(*columns: np.ndarray) -> np.ndarray:
    """Where a sorted list of pairs changes."""
    return np.flatnonzero(np.any([np.diff(column) != 0 for column in columns], axis=0)) + 1
