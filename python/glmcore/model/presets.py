"""Published models by name. Their values stand in one place, the `[model]` tables of the packaged recipes."""

from pathlib import Path
from typing import Any

from glmcore.config import merge
from glmcore.errors import ConfigError

_RECIPES = Path(__file__).parents[1] / "recipes"
PRESETS = {"glm-4.5": "glm-4.5", "glm-4.5-air": "glm-4.5-air", "glm-4.6": "glm-4.6", "glm-4.7": "glm-4.6"}
"""Recipe that holds each model. GLM-4.7's config.json has the values of GLM-4.6's."""


def preset_values(name: Any) -> dict[str, Any]:
    """Fields of `GlmConfig` of a published model.

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}: there are {', '.join(PRESETS)}")
    return merge([_RECIPES / f"{PRESETS[name]}.toml"], [])["model"]
