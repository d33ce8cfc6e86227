"""Environments by the name that a recipe gives them."""

import importlib
from collections.abc import Sequence
from typing import Any

from glmcore.envs.config import CustomConfig, EnvironmentConfig
from glmcore.envs.protocol import Family
from glmcore.errors import ConfigError

FAMILIES: dict[str, str] = {
    "reasoning_gym": "glmcore.envs.reasoning:ReasoningFamily",
}
"""Where the class of each is, made from its section of the recipe and `rl.tasks`. Imported when it is asked for."""


def open_family(config: EnvironmentConfig, names: Sequence[str] = ()) -> Family:
    """The environments and tasks that a recipe asks for; to be closed in the end.

    Args:
        config: Section `[rl.environment]`.
        names: `rl.tasks`.

    Raises:
        ConfigError: The names do not fit, a package is not installed, or the factory is not there.
        DataError: Tasks cannot be read.
    """
    try:
        config.check_tasks(list(names))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if isinstance(config, CustomConfig):
        return _find(config.factory)(config.options, list(names))
    return _find(FAMILIES[config.name])(config, list(names))


def _find(place: str) -> Any:
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"there is no environment at {place!r}: {error}") from None
