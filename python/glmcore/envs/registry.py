"""Environments by the name that a recipe gives them."""

import contextlib
from collections.abc import Sequence
from typing import Any

from glmcore.envs.config import CustomConfig, EnvironmentConfig
from glmcore.envs.factory import find_factory
from glmcore.envs.protocol import Family, Split
from glmcore.errors import ConfigError

FAMILIES: dict[str, str] = {
    "reasoning_gym": "glmcore.envs.reasoning:ReasoningFamily",
    "math": "glmcore.envs.judged:MathFamily",
    "choice": "glmcore.envs.judged:ChoiceFamily",
    "code": "glmcore.envs.judged:CodeFamily",
    "bfcl": "glmcore.envs.functions.bfcl:BfclFamily",
    "search": "glmcore.envs.search:SearchFamily",
    "workspace": "glmcore.envs.workspace:WorkspaceFamily",
    "service": "glmcore.envs.service:ServiceFamily",
    "tau2": "glmcore.envs.tau2:Tau2Family",
    "http": "glmcore.envs.http:HttpFamily",
    "verifiers": "glmcore.envs.verifiers:VerifiersFamily",
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
        return find_factory(config.factory)(config.options, list(names))
    return find_factory(FAMILIES[config.name])(config, list(names))


def list_tasks(config: EnvironmentConfig, names: Sequence[str], split: Split, count: int, seed: int) -> list[Any]:
    """Tasks of a recipe's environment, without an environment to play them; see `Family.tasks`.

    Raises:
        ConfigError: See `open_family`.
        DataError: There is none.
    """
    with contextlib.closing(open_family(config, names)) as family:
        return list(family.tasks(split, count, seed))
