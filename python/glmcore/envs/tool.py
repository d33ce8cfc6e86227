"""Tools: descriptions that a model reads, and calls checked against them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glmcore.chat import ToolCall

_TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}


@dataclass(frozen=True)
class Tool:
    """A function that a model may call. All arguments have to be given."""

    name: str
    description: str
    arguments: Mapping[str, str]
    """Name and JSON type of each: `string`, `integer`, `number`, `boolean`, or `any` of these."""

    @property
    def schema(self) -> dict[str, Any]:
        """As `glmcore.chat` takes it."""
        properties = {name: {} if kind == "any" else {"type": kind} for name, kind in self.arguments.items()}
        parameters = {"type": "object", "properties": properties, "required": list(self.arguments)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


def wrong_call(call: ToolCall, tools: Mapping[str, Tool]) -> str | None:
    """What is wrong with a call, for the model to read; None if nothing is."""
    tool = tools.get(call.name)
    if tool is None:
        return f"error: there is no tool {call.name}; there are {', '.join(tools)}"
    if set(call.arguments) != set(tool.arguments):
        return f"error: {call.name} takes {', '.join(tool.arguments) or 'no arguments'}"
    for name, kind in tool.arguments.items():
        value = call.arguments[name]
        kinds = _TYPES.get(kind, (str, int, float, bool))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            return f"error: {name} of {call.name} has to be of type {kind}"
    return None


def bounded(text: str, most: int) -> str:
    """A result that a model reads; of a long one the beginning and the end."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[len(text) - half :]}"


def as_text(value: Any) -> str:
    """A value as compact JSON."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
