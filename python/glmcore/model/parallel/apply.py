"""The one place that spreads a model over ranks, in the order in which the ways to do so have to be applied."""

import torch

from glmcore.errors import ConfigError
from glmcore.model.glm import Glm
from glmcore.model.parallel.data import shard_weights
from glmcore.model.parallel.ranks import Ranks


def parallelize(model: Glm, ranks: Ranks, *, compute_dtype: torch.dtype | None = None) -> Glm:
    """Spread `model` over `ranks`, in place.

    Args:
        model: A whole model, best on the meta device: no rank then ever holds all of it.
        ranks: Who works together.
        compute_dtype: See `shard_weights`; None is the weights' own.

    Raises:
        ConfigError: The layout does not divide the model, or there is no such combination.
    """
    if ranks.is_alone:
        return model
    config = ranks.config
    for name in ("pipeline", "context", "tensor", "expert"):
        if getattr(config, name) > 1:
            raise ConfigError(f"parallel.{name}={getattr(config, name)} is not there yet")
    shard_weights(model, ranks, compute_dtype)
    return model
