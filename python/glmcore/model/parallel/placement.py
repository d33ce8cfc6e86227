"""Which part of a sharded tensor a rank holds, and fresh weights that do not depend on how they are sharded."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement


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
def draw_normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill with normal numbers of mean 0, matrix by matrix, on whatever device and in whatever part of it.

    Every rank draws all numbers and keeps its own, so weights are the same however they are sharded; no more than one
    matrix is held on the side.

    Args:
        parameter: [..., A, B], at most three dimensions.
        std: Standard deviation.
        generator: Of the CPU.
    """
    whole = parameter.unsqueeze(0) if parameter.dim() == 2 else parameter
    ranges = local_ranges(parameter) if isinstance(parameter, DTensor) else [(0, size) for size in parameter.shape]
    ranges = [(0, 1), *ranges] if parameter.dim() == 2 else ranges
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    local = local.unsqueeze(0) if parameter.dim() == 2 else local
    (first, end), rows, columns = ranges
    matrix = torch.empty(whole.shape[1:], dtype=parameter.dtype)
    for index in range(whole.shape[0]):
        matrix.normal_(0.0, std, generator=generator)
        if first <= index < end:
            local[index - first].copy_(matrix[slice(*rows), slice(*columns)])
