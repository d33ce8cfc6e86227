"""Data parallelism: ranks take different rows, and share out weights, gradients and optimiser state (FSDP2).

A block's weights are gathered before it runs, forwards and backwards, and dropped after; its gradients are summed over
the ranks that hold different tokens and cut up again. Source: PyTorch FSDP (arXiv:2304.11277) and, with replicas,
its hybrid sharding: gathers stay inside a replica, gradients are summed over replicas too.
"""

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from glmcore.model.glm import Glm
from glmcore.model.moe import Router
from glmcore.model.parallel.ranks import Ranks


def shard_weights(model: Glm, ranks: Ranks, compute_dtype: torch.dtype | None = None) -> None:
    """Shard every block, and what is outside of blocks, over the ranks of `shard`; replicate it over `replicas`.

    Embedding, last norm and head stay whole from the forward pass to the end of the backward pass, so the head may be
    used after the forward pass, by a loss.

    Args:
        model: The model, on the meta device or with the same weights on every rank.
        ranks: More than one.
        compute_dtype: Weights are gathered in it, activations come out in it, and gradients are summed in float32; by
            default all is in the weights' own. Routers always are, since rounding would swap experts.
    """
    mesh = ranks.mesh("replicas", "shard") if ranks.config.replicas > 1 else ranks.mesh("shard")
    low = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    own = MixedPrecisionPolicy(cast_forward_inputs=False)
    for layer in model.model.layers:
        if compute_dtype is not None:
            for router in (part for part in layer.modules() if isinstance(part, Router)):
                fully_shard(router, mesh=mesh, mp_policy=own)
        fully_shard(layer, mesh=mesh, mp_policy=low if compute_dtype is not None else own)
    fully_shard(model, mesh=mesh, mp_policy=low if compute_dtype is not None else own)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # losses are divided by the tokens of the whole step: gradients add up
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
