"""Encoders of others, named in a recipe: functions from texts to vectors."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from glmcore.errors import ConfigError, DataError


def embed(name: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Embeddings of texts, float32 [texts, dimensions].

    Args:
        name: `module:function` of a module that can be imported; the function takes a list of texts and gives an array
            of floats, a row for each text.
        texts: At least one.

    Raises:
        ConfigError: There is no such function.
        DataError: What it gives is no array of that shape, or holds a number that is not finite.
    """
    rows: Any = np.asarray(_function(name)(list(texts)))
    if rows.ndim != 2 or rows.dtype.kind != "f" or len(rows) != len(texts) or rows.shape[1] < 1:
        given = f"{rows.dtype} {list(rows.shape)}"
        raise DataError(f"encoder {name} gave {given} for {len(texts)} texts, not a row of floats for each")
    if not np.isfinite(rows).all():
        raise DataError(f"encoder {name} gave a number that is not finite")
    return np.ascontiguousarray(rows, np.float32)


def source_file(name: str) -> str:
    """The file of an encoder's module.

    Raises:
        ConfigError: There is no such module.
    """
    module = name.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or found.origin is None:
        raise ConfigError(f"encoder {name}: there is no module {module!r} that can be imported: set PYTHONPATH")
    return found.origin


@lru_cache(maxsize=4)
def _function(name: str) -> Callable[[list[str]], Any]:
    """The function, imported once in each process, so that it may load a model when its module is."""
    source_file(name)
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute, None)
    if not callable(function):
        raise ConfigError(f"encoder {name}: {module} has no function {attribute!r}")
    return function
