"""The one place that spreads a model over ranks, in the order in which the ways to do so have to be applied."""

import torch

from glmcore.errors import ConfigError
from glmcore.model.glm import Glm
from glmcore.model.parallel.data import shard_weights
from glmcore.model.parallel.pipeline import PipelinedGlm
from glmcore.model.parallel.ranks import Ranks


def parallelize(model: Glm, ranks: Ranks, *, compute_dtype: torch.dtype | None = None) -> Glm:
    """Spread `model` over `ranks`.

    Args:
        model: A whole model, best on the meta device: no rank then ever holds all of it.
        ranks: Who works together.
        compute_dtype: See `shard_weights`; None is the weights' own.

    Returns:
        The model itself, changed in place; in a pipeline this rank's part of it.

    Raises:
        ConfigError: The layout does not divide the model, or there is no such combination.
    """
    if ranks.is_alone:
        return model
    config = ranks.config
    for name in ("context", "tensor", "expert"):
        if getattr(config, name) > 1:
            raise ConfigError(f"parallel.{name}={getattr(config, name)} is not there yet")
    if config.pipeline > 1:
        model = PipelinedGlm(model, ranks)
        model.activation_dtype = compute_dtype or model.activation_dtype
    for part in model.stages if isinstance(model, PipelinedGlm) else [model]:
        if config.size("batch") > 1 or compute_dtype is not None:
            shard_weights(part, ranks, compute_dtype)
    return model
