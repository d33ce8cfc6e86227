"""Which part of a sharded tensor a rank holds, and fresh weights that do not depend on how they are sharded."""

import hashlib

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement


def split(parameter: Tensor, mesh: DeviceMesh, *placements: Shard) -> nn.Parameter:
    """This rank's part of a parameter that is the same on all ranks, or of the meta device; nothing is sent."""
    return nn.Parameter(distribute_tensor(parameter.detach(), mesh, placements, src_data_rank=None))


def local_part(tensor: Tensor) -> Tensor:
    """The plain tensor that this rank holds of `tensor`, with a gradient that lies as `tensor` does."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_ranges(tensor: DTensor) -> list[tuple[int, int]]:
    """First index and end, in each dimension, of the part that this rank holds.

    Placements apply from left to right, but for that of FSDP, which cuts what tensor and expert ranks have left of a
    tensor although it stands before theirs (PyTorch calls it a strided shard).
    """
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None, "a parameter's mesh holds this rank"
    ranges = [(0, size) for size in tensor.shape]
    placements = list(zip(tensor.placements, coordinate, tensor.device_mesh.shape, strict=True))
    for placement, index, parts in sorted(placements, key=lambda entry: _is_strided(entry[0])):
        if placement.is_shard() or _is_strided(placement):
            dim: int = placement.dim  # pyright: ignore[reportAttributeAccessIssue]
            start, end = ranges[dim]
            size = -(-(end - start) // parts)  # as torch.chunk has it: the last parts may be shorter or empty
            first = min(start + index * size, end)
            ranges[dim] = (first, min(first + size, end))
    return ranges


def _is_strided(placement: Placement) -> bool:
    return type(placement).__name__ == "_StridedShard"


@torch.no_grad()
def draw_normal(parameter: Tensor, std: float, key: str) -> None:
    """Fill with normal numbers of mean 0, matrix by matrix, on whatever device and in whatever part of it.

    Every matrix has a stream of its own. A rank draws the matrices of which it holds something and keeps that, so the
    numbers are the same however they are sharded; no more than one matrix is held on the side.

    Args:
        parameter: [..., A, B], at most three dimensions.
        std: Standard deviation.
        key: Other keys have other numbers.
    """
    ranges = local_ranges(parameter) if isinstance(parameter, DTensor) else [(0, size) for size in parameter.shape]
    local = local_part(parameter)
    if parameter.dim() == 2:
        ranges, local = [(0, 1), *ranges], local.unsqueeze(0)
    (first, end), rows, columns = ranges
    matrix = torch.empty(parameter.shape[-2:], dtype=parameter.dtype)
    generator = torch.Generator()
    for index in range(first, end):
        digest = hashlib.sha256(f"{key} {index}".encode()).digest()
        matrix.normal_(0.0, std, generator=generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True)))
        local[index - first].copy_(matrix[slice(*rows), slice(*columns)])
