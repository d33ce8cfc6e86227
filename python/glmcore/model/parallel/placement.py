"""Which part of a sharded tensor a rank holds, and fresh weights that do not depend on how they are sharded."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


@dataclass(frozen=True)
class Box:
    """A rectangular part of a tensor: where it begins and how far it reaches in each dimension."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements inside."""
        count = 1
        for length in self.size:
            count *= length
        return count

    def intersect(self, other: "Box") -> "Box | None":
        """What both contain; None where that is nothing."""
        start = tuple(map(max, self.start, other.start))
        end = tuple(
            min(a + m, b + n) for a, m, b, n in zip(self.start, self.size, other.start, other.size, strict=True)
        )
        size = tuple(e - s for s, e in zip(start, end, strict=True))
        return Box(start, size) if min(size, default=1) > 0 else None

    def slices_from(self, origin: tuple[int, ...]) -> tuple[slice, ...]:
        """Index of this part in a tensor that begins at `origin`."""
        return tuple(slice(s - o, s - o + n) for s, o, n in zip(self.start, origin, self.size, strict=True))


def split(parameter: Tensor, mesh: DeviceMesh, *placements: Shard) -> nn.Parameter:
    """This rank's part of a parameter that is the same on all ranks, or of the meta device; nothing is sent."""
    return nn.Parameter(distribute_tensor(parameter.detach(), mesh, placements, src_data_rank=None))


def local_part(tensor: Tensor) -> Tensor:
    """The plain tensor that this rank holds of `tensor`, with a gradient that lies as `tensor` does."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_box(tensor: Tensor) -> Box:
    """Where the local part lies in the whole tensor."""
    if not isinstance(tensor, DTensor):
        return Box((0,) * tensor.dim(), tuple(tensor.shape))
    size, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Box(tuple(start), tuple(size))


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
    box, local = local_box(parameter), local_part(parameter)
    rows, columns = box.slices_from((0,) * parameter.dim())[-2:]
    first, count = (box.start[0], box.size[0]) if parameter.dim() == 3 else (0, 1)
    if parameter.dim() == 2:
        local = local.unsqueeze(0)
    matrix = torch.empty(parameter.shape[-2:], dtype=parameter.dtype)
    generator = torch.Generator()
    for index in range(first, first + count):
        digest = hashlib.sha256(f"{key} {index}".encode()).digest()
        matrix.normal_(0.0, std, generator=generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True)))
        local[index - first].copy_(matrix[rows, columns])
