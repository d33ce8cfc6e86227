"""The norm of all gradients of a model, whatever ranks they lie on."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from glmcore.train.holdings import Holdings


def global_norm(gradients: Mapping[str, Tensor], holdings: Holdings) -> float:
    """Square root of the sum of squares of all elements of all gradients; all ranks of `holdings` must call.

    Squares are summed in float64: first the elements of each local part, then parts in the order of names, then ranks
    in their order. A square of a float32 is exact in float64, so layouts differ by some 1e-15 of the norm, which
    float32 factors made of it do not show but for one in about 1e8; the same layout gives the same bits.

    Args:
        gradients: Local parts by parameter.
        holdings: A part that several ranks hold counts once.
    """
    counted = [gradient for name, gradient in sorted(gradients.items()) if holdings.is_counted_here(name)]
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in counted]
    device = next((gradient.device for gradient in gradients.values()), torch.device("cpu"))
    total = torch.stack(norms).square().sum() if norms else torch.zeros((), dtype=torch.float64, device=device)
    if holdings.group is not None:
        totals = total.new_empty(dist.get_world_size(holdings.group))
        dist.all_gather_into_tensor(totals, total.reshape(1), group=holdings.group)
        total = totals.cumsum(0)[-1]
    return float(total.sqrt())
