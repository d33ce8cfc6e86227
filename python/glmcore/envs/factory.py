"""Functions and classes by the place that a recipe gives them."""

import importlib
from typing import Any

from glmcore.errors import ConfigError


def find_factory(place: str) -> Any:
    """What stands at `package.module:name`.

    Raises:
        ConfigError: There is no such thing, or its package is not installed.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"there is no environment at {place!r}: {error}") from None
