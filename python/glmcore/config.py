"""Base of every configuration section, and the one loader of TOML files with overrides."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from glmcore.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Config(BaseModel):
    """Base of every section: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True)

    @classmethod
    def load(cls, files: Sequence[Path], overrides: Sequence[str] = ()) -> Self:
        """Merge TOML files, later ones winning, then overrides, and validate once.

        Args:
            files: TOML files, merged table by table; lists are replaced whole.
            overrides: Each `dotted.key=value`, the value in TOML; a bare word is a string. A number in the
                dotted key is a list position: `stages.0.num_tokens=10_000`.

        Raises:
            ConfigError: A file cannot be read, or a key is unknown, missing or has a wrong value.
        """
        return cls.from_dict(merge(files, overrides), origin=", ".join(str(file) for file in files))

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str) -> Self:
        """Validate `values`; `origin` names them in the error.

        Raises:
            ConfigError: A key is unknown, missing or has a wrong value.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{origin}: {_first_problem(error)}") from None


def merge(files: Sequence[Path], overrides: Sequence[str]) -> dict[str, Any]:
    """The values that `Config.load` validates.

    Raises:
        ConfigError: A file cannot be read, or an override fits nothing.
    """
    merged: dict[str, Any] = {}
    for file in files:
        _merge(merged, _read_toml(file))
    for override in overrides:
        _apply_override(merged, override)
    return merged


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {place!r}"
    if first["type"] == "missing":
        return f"missing key {place!r}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{place}: {message}" if place else message


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        else:
            into[key] = value


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    *parents, last = dotted.split(".")
    node: Any = values
    for parent in parents:
        node = _child(node, parent, override)
    value = _parse_value(text)
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, key, override)]
    child = node.setdefault(key, {})
    if not isinstance(child, dict | list):
        raise ConfigError(f"override {override!r}: {key!r} is a value, not a section")
    return child


def _position(items: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"override {override!r}: {key!r} is not a position in a list of {len(items)}")
    return int(key)


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
