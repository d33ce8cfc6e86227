"""Tools of a Responses request: functions, and namespaces of them, which the model sees under their joined names."""

from collections.abc import Iterator, Sequence
from typing import Any

from glmcore.serve.errors import bad_request
from glmcore.serve.responses.schema import Tool


def chat_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
    """Function descriptions.

    Raises:
        ServeError: A tool is neither a function nor a namespace of functions.
    """
    return [tool for index, given in enumerate(tools or ()) for tool in _functions(given, f"tools[{index}]", "")]


def joined(namespace: str | None, name: str) -> str:
    """The name under which the model sees a function."""
    return f"{namespace}.{name}" if namespace else name


def namespaced(tools: Sequence[Tool] | None) -> dict[str, tuple[str, str]]:
    """Namespace and name of each function in a namespace, by the name under which the model sees it."""
    spaces = {tool.name or "": tool.tools for tool in tools or () if tool.type == "namespace"}
    return {joined(space, str(tool.name)): (space, str(tool.name)) for space, inner in spaces.items() for tool in inner}


def _functions(tool: Tool, where: str, namespace: str) -> Iterator[dict[str, Any]]:
    if tool.type == "namespace" and not namespace:
        for index, inner in enumerate(tool.tools):
            yield from _functions(inner, f"{where}.tools[{index}]", tool.name or "")
        return
    if tool.type != "function":
        raise bad_request(
            f"{where} is of type {tool.type!r}: this server runs no tools of its own; turn it off in the client "
            "or describe it as a function and run it yourself",
            param=where,
        )
    if not tool.name:
        raise bad_request(f"{where} has no name", param=where)
    described = {} if tool.description is None else {"description": tool.description}
    parameters = tool.parameters or {"type": "object", "properties": {}}
    name = joined(namespace, tool.name)
    yield {"type": "function", "function": {"name": name, **described, "parameters": parameters}}
