"""Who holds which part of which parameter, for what several ranks have to do together on the optimiser's side."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from glmcore.model.parallel.placement import Box, local_box

_MAX_DIMS = 4


class Holdings:
    """The parts of a model's parameters on every rank, learnt once by two collectives.

    Nothing is assumed of meshes and placements: parameters may be plain or DTensors on different meshes, and a
    pipeline's ranks hold other parameters than their neighbours. Peers are the ranks that hold parts of the same
    parameters as this one, itself among them.

    Args:
        parameters: This rank's parameters by their global names. All ranks of `group` must call, in a process without
            process groups it is alone.
        group: The ranks that train the model together; the default group if None.
    """

    def __init__(self, parameters: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
        self.group: dist.ProcessGroup | None = None
        """The ranks that train together; None where this one is alone."""
        self.peer_group: dist.ProcessGroup | None = None
        """Those of them that hold parts of the same parameters; None where this one is alone."""
        self.peer = 0
        """This rank's place among its peers."""
        own = {name: local_box(parameter) for name, parameter in parameters.items()}
        self._boxes = {name: [box] for name, box in own.items()}
        self._counted = set(own)
        self._names = sorted(own)
        if dist.is_initialized() and dist.get_world_size(group) > 1:
            self.group = dist.group.WORLD if group is None else group  # pyright: ignore[reportAttributeAccessIssue]
            device = next((parameter.device for parameter in parameters.values()), torch.device("cpu"))
            self._learn(own, {name: tuple(parameter.shape) for name, parameter in parameters.items()}, device)

    @property
    def num_peers(self) -> int:
        """Peers, this rank among them."""
        return 1 if self.peer_group is None else dist.get_world_size(self.peer_group)

    def boxes(self, name: str) -> list[Box]:
        """What each peer holds of a parameter."""
        return self._boxes[name]

    def is_counted_here(self, name: str) -> bool:
        """True on the first of the ranks that hold the same part of a parameter: a sum over parts counts it there."""
        return name in self._counted

    def _learn(self, own: dict[str, Box], shapes: dict[str, tuple[int, ...]], device: torch.device) -> None:
        """Find the peers and what they hold."""
        whole = [_hash(name, shapes[name]) for name in self._names]
        parts = [_hash(name, own[name].start, own[name].size) for name in self._names]
        rows = _all_gather(np.array([whole, parts], np.int64), self.group, device)  # per rank [2, names]
        rank = dist.get_rank(self.group)
        peers = [other for other, row in enumerate(rows) if np.array_equal(row[0], rows[rank][0])]
        for other, row in enumerate(rows):
            if other < rank:
                held = np.isin(rows[rank][1], row[1])
                self._counted -= {name for name, there in zip(self._names, held, strict=True) if there}
        self.peer = peers.index(rank)
        if len(peers) == len(rows):
            self.peer_group = self.group
        elif len(peers) > 1:
            members = [dist.get_global_rank(self.group, peer) for peer in peers]  # type: ignore[arg-type]
            made = dist.new_group(members, use_local_synchronization=True)
            assert isinstance(made, dist.ProcessGroup)  # since this rank is one of them
            self.peer_group = made
        if self.peer_group is not None:
            self._learn_boxes(own, shapes, device)

    def _learn_boxes(self, own: dict[str, Box], shapes: dict[str, tuple[int, ...]], device: torch.device) -> None:
        table = np.zeros((len(self._names), 2, _MAX_DIMS), np.int64)
        for row, name in zip(table, self._names, strict=True):
            row[0, : len(shapes[name])] = own[name].start
            row[1, : len(shapes[name])] = own[name].size
        gathered = _all_gather(table, self.peer_group, device)
        for index, name in enumerate(self._names):
            dims = len(shapes[name])
            self._boxes[name] = [
                Box(tuple(row[index, 0, :dims].tolist()), tuple(row[index, 1, :dims].tolist())) for row in gathered
            ]


def _all_gather(values: np.ndarray, group: dist.ProcessGroup | None, device: torch.device) -> list[np.ndarray]:
    """The arrays of all ranks, which may differ in the length of the last dimension."""
    length = torch.tensor([values.shape[-1]], device=device)
    lengths = [torch.empty_like(length) for _ in range(dist.get_world_size(group))]
    dist.all_gather(lengths, length, group=group)
    longest = max(int(n) for n in lengths)
    padding = [(0, 0)] * (values.ndim - 1) + [(0, longest - values.shape[-1])]
    mine = torch.from_numpy(np.pad(values, padding)).to(device)
    others = [torch.empty_like(mine) for _ in lengths]
    dist.all_gather(others, mine, group=group)
    return [other.cpu().numpy()[..., : int(n)] for other, n in zip(others, lengths, strict=True)]


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little", signed=True)
