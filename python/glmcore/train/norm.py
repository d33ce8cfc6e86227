"""The norm of all gradients of a model, whatever ranks they lie on."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from glmcore.train.holdings import Holdings

_BLOCK = 64
"""Elements whose squares are added in float32."""


def global_norm(gradients: Mapping[str, Tensor], holdings: Holdings) -> float:
    """Square root of the sum of squares of all elements of all gradients; all ranks of `holdings` must call.

    The order of summation is fixed: blocks of 64 neighbours of a row (a whole row where 64 does not divide it) in
    float32, and all else in float64: the blocks of a parameter's local part, parameters in the order of their names,
    ranks in theirs. So one layout always gives the same bits. Layouts that do not cut through blocks differ by some
    1e-15 of the norm, others by the rounding of float32 sums of 64 squares, at most 4e-6 and in practice 1e-9, since
    the roundings of many blocks cancel.

    Args:
        gradients: Local parts by parameter.
        holdings: A part that several ranks hold counts once.
    """
    counted = [gradient for name, gradient in sorted(gradients.items()) if holdings.is_counted_here(name)]
    sums = [_square_sum(gradient) for gradient in counted if gradient.numel()]
    device = next((gradient.device for gradient in gradients.values()), torch.device("cpu"))
    total = torch.stack(sums).sum() if sums else torch.zeros((), dtype=torch.float64, device=device)
    if holdings.group is not None:
        totals = total.new_empty(dist.get_world_size(holdings.group))
        dist.all_gather_into_tensor(totals, total.reshape(1), group=holdings.group)
        total = totals.cumsum(0)[-1]
    return float(total.sqrt())


def _square_sum(gradient: Tensor) -> Tensor:
    length = gradient.shape[-1] if gradient.dim() else 1
    blocks = gradient.reshape(-1, length if length % _BLOCK else _BLOCK)
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return torch.linalg.vector_norm(blocks, dim=-1, dtype=wide).double().square().sum()
