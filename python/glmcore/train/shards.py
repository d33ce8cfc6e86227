"""The part of a parameter that this process holds: all of it, or a shard of a DTensor."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
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


def local(tensor: Tensor) -> Tensor:
    """The local tensor, sharing memory with `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The gradient of the local part; where it was summed up over other placements, it is first brought to those of
    the parameter, which all ranks must do alike.
    """
    grad = parameter.grad
    if isinstance(grad, DTensor) and isinstance(parameter, DTensor) and grad.placements != parameter.placements:
        grad = grad.redistribute(placements=parameter.placements)
        parameter.grad = grad
    return None if grad is None else local(grad)


def local_box(tensor: Tensor) -> Box:
    """Where the local part lies in the whole tensor."""
    if not isinstance(tensor, DTensor):
        return Box((0,) * tensor.dim(), tuple(tensor.shape))
    size, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Box(tuple(start), tuple(size))
