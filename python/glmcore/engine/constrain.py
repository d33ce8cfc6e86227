"""What a generated text must look like: JSON of a schema, a regular expression, or calls of tools.

A `Constraint` says it; `glmcore.engine.guide` turns it into the tokens that may come next.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from glmcore.errors import RequestError

MAX_SOURCE_BYTES = 1 << 18
"""Largest schema, pattern or list of tools."""


@dataclass(frozen=True)
class Constraint:
    """What a text must look like. Made by the functions of this module."""

    kind: Literal["json_schema", "regex", "tool_calls"]
    source: str
    """Schema, pattern, or tools with their choice; JSON but for a pattern."""
    thinking: Literal["none", "first", "begun"] = "none"
    """The constraint holds after `</think>`: `first` where the reply has to open its thinking itself, `begun` where
    the prompt ends inside of it."""
    lenient: bool = False
    """Keywords of schemas that cannot be enforced are passed over; else they are errors."""

    def __post_init__(self) -> None:
        size = len(self.source.encode(errors="surrogatepass"))
        if size > MAX_SOURCE_BYTES:
            raise RequestError(f"a constraint of {size:,} bytes is above the limit of {MAX_SOURCE_BYTES:,}")
        if self.thinking not in ("none", "first", "begun"):
            raise RequestError(f"thinking must be 'none', 'first' or 'begun', got {self.thinking!r}")


Thinking = Literal["none", "first", "begun"]


def json_schema(schema: Mapping[str, Any] | bool, *, thinking: Thinking = "none", lenient: bool = False) -> Constraint:
    """JSON that is valid under a schema.

    Properties come in the order of the schema, those of `additionalProperties` last; between tokens of JSON there is at
    most one line break and 32 spaces.

    Args:
        schema: JSON Schema, draft 2020-12. `format` is enforced where it is known.
        thinking: See `Constraint`.
        lenient: See `Constraint`.

    Raises:
        RequestError: The schema is no JSON, or too large. What cannot be enforced is an error of `Engine.add`.
    """
    if not isinstance(schema, Mapping | bool):
        raise RequestError(f"a JSON schema is an object or a bool, got {type(schema).__name__}")
    return Constraint("json_schema", _json(schema, "the schema"), thinking, lenient)


def json_object(*, thinking: Thinking = "none") -> Constraint:
    """Any JSON object."""
    return json_schema({"type": "object"}, thinking=thinking)


def regex(pattern: str, *, thinking: Thinking = "none") -> Constraint:
    """Text that matches the whole of a pattern, in the syntax of Rust's `regex`: no look-around, no references.

    Raises:
        RequestError: The pattern is empty or too large. What cannot be read is an error of `Engine.add`.
    """
    if not isinstance(pattern, str) or not pattern:
        raise RequestError(f"a pattern is a string that is not empty, got {pattern!r}")
    return Constraint("regex", pattern, thinking)


def tool_calls(
    tools: Sequence[Mapping[str, Any]],
    choice: Literal["auto", "required"] | Mapping[str, Any] = "auto",
    *,
    parallel: bool = True,
    thinking: Thinking = "none",
    lenient: bool = False,
) -> Constraint:
    """Calls of tools in the format of GLM-4.5 and 4.6, with arguments that are valid under the tools' schemas.

    Arguments come in the order of the schema's `properties`; no others come, unless it has none. One that is declared
    `{"type": "string"}` is text as it is, which can hold any text but the tags of the format; `pattern`, `minLength`,
    `maxLength`, `enum` and `const` hold, `format` does not.

    Args:
        tools: Function descriptions, bare or under `function`.
        choice: `auto` allows an answer in words and calls after it, `required` calls alone, `{"name": ...}` calls of
            this tool alone.
        parallel: Allow several calls.
        thinking: See `Constraint`.
        lenient: See `Constraint`.

    Raises:
        RequestError: There are no tools, one has no name, or the choice is none of them.
    """
    functions = [tool.get("function", tool) for tool in tools]
    names = [function.get("name") for function in functions]
    if not functions:
        raise RequestError("tool calls need at least one tool")
    for name in names:
        if not isinstance(name, str) or not name.strip() or name != name.strip() or set(name) & set("\n<"):
            raise RequestError(f"the name of a tool must be one line of text without '<', got {name!r}")
    if len(set(names)) < len(names):
        raise RequestError(f"two tools have the name {max(names, key=names.count)!r}")
    if isinstance(choice, Mapping):
        wanted = choice.get("function", choice).get("name")
        functions = [function for function in functions if function["name"] == wanted]
        if not functions:
            raise RequestError(f"tool_choice names {wanted!r}, which is none of the tools")
    elif choice not in ("auto", "required"):
        raise RequestError(f"tool_choice must be 'auto', 'required' or {{'name': ...}}, got {choice!r}")
    told = [{"name": each["name"], "parameters": each.get("parameters") or {}} for each in functions]
    source = {"tools": told, "optional": choice == "auto", "parallel": parallel}
    return Constraint("tool_calls", _json(source, "the tools"), thinking, lenient)


def _json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{what} cannot be written as JSON: {error}") from None
