"""Gradients as they lie on this rank."""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from glmcore.model.parallel.placement import local_part


def local_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The gradient of the local part; one that lies otherwise than the parameter is first brought to its placements.

    All ranks that hold a part of the parameter must call it.
    """
    grad = parameter.grad
    if isinstance(grad, DTensor) and isinstance(parameter, DTensor) and grad.placements != parameter.placements:
        grad = grad.redistribute(placements=parameter.placements)
        parameter.grad = grad
    return None if grad is None else local_part(grad)
