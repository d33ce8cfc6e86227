"""The one place that spreads a model over ranks, in the order in which the ways to do so have to be applied."""

import torch

from glmcore.errors import ConfigError
from glmcore.model.config import Checkpointing
from glmcore.model.glm import Glm
from glmcore.model.parallel.data import shard_weights
from glmcore.model.parallel.expert import check_expert_split, split_experts
from glmcore.model.parallel.pipeline import PipelinedGlm
from glmcore.model.parallel.ranks import Ranks
from glmcore.model.parallel.tensor import check_tensor_split, split_tensors


def parallelize(
    model: Glm,
    ranks: Ranks,
    *,
    compute_dtype: torch.dtype | None = None,
    checkpointing: Checkpointing = "none",
    compile_blocks: bool = False,
) -> Glm:
    """Spread `model` over `ranks`, and choose how its blocks are computed.

    Args:
        model: A whole model, best on the meta device: no rank then ever holds all of it.
        ranks: Who works together.
        compute_dtype: See `shard_weights`; None is the weights' own.
        checkpointing: See `Glm.set_activation_checkpointing`.
        compile_blocks: See `Glm.compile_blocks`.

    Returns:
        The model itself, changed in place; in a pipeline this rank's part of it.

    Raises:
        ConfigError: The layout does not divide the model, or there is no such combination.
    """
    config = ranks.config
    if ranks.is_alone and compute_dtype is not None:
        raise ConfigError(f"to compute in {compute_dtype} one process needs a mesh too: Ranks(..., needs_mesh=True)")
    check_tensor_split(model.config, config.tensor)
    check_expert_split(model.config, config.expert, config.tensor)
    if config.pipeline > 1:
        model = PipelinedGlm(model, ranks)
    if config.tensor > 1:
        split_tensors(model, ranks)
    if config.tensor * config.expert > 1:
        split_experts(model, ranks)
    model.set_activation_checkpointing(checkpointing)
    if compile_blocks:
        model.compile_blocks(ranks.device)
    for part in model.cut(compute_dtype) if isinstance(model, PipelinedGlm) else [model]:
        if config.num_ranks > config.pipeline or compute_dtype is not None:
            shard_weights(part, ranks, compute_dtype)
    return model
