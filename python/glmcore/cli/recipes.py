"""Recipes as the command's verbs take them: files or packaged names, and overrides."""

from typing import TYPE_CHECKING

from glmcore.errors import ConfigError

if TYPE_CHECKING:
    from glmcore.recipe import Recipe


def load_recipe(settings: list[str], default: str | None = None, extra: list[str] | None = None) -> "Recipe":
    """The recipe that `settings` describe: those with a `=` are overrides, the others files or names.

    Args:
        settings: As given on the command line.
        default: Recipe where none is given.
        extra: Overrides that come last.

    Raises:
        ConfigError: There is no recipe, or it is wrong.
    """
    from glmcore.recipe import Recipe, find_recipe

    files = [setting for setting in settings if "=" not in setting]
    overrides = [setting for setting in settings if "=" in setting]
    if not files:
        if default is None:
            raise ConfigError("no recipe given: name a TOML file or a packaged recipe such as nano")
        files = [default]
    return Recipe.load([find_recipe(file) for file in files], overrides + (extra or []))
