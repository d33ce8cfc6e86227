"""A field that is a text or a list: an error tells what is wrong in what was sent, not that it is not the other."""

from typing import Annotated, Any, TypeVar

from pydantic import Discriminator, Tag

_T = TypeVar("_T")


def _shape(value: Any) -> str:
    return "text" if isinstance(value, str) else "list"


TextOr = Annotated[Annotated[str, Tag("text")] | Annotated[_T, Tag("list")], Discriminator(_shape)]
"""`TextOr[list[Block]]`."""
