"""Tasks of plain data: JSON lines that a user gives, split once and for all."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from glmcore.data.reasoning import is_held_out
from glmcore.envs.protocol import Item, Split, Task
from glmcore.errors import DataError

T = TypeVar("T", bound=Task)


def read_json_lines(file: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, one a line; empty lines do not count.

    Raises:
        DataError: The file cannot be read, or a line is no JSON object.
    """
    try:
        with Path(file).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _object(line, f"{file}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{place} is no object")
    return value


def read_items(file: str | Path, required: Sequence[str]) -> list[Item]:
    """The objects of a file as tasks; one without an `id` is called by its line.

    Raises:
        DataError: A line lacks a required key, or see `read_json_lines`.
    """
    items: list[Item] = []
    for number, value in enumerate(read_json_lines(file), start=1):
        missing = [key for key in required if key not in value]
        if missing:
            raise DataError(f"{file}:{number} has no {', '.join(missing)}")
        items.append(Item(str(value.get("id", f"{Path(file).stem}/{number}")), value))
    return items


def choose(tasks: Sequence[T], split: Split | None, count: int, seed: int) -> list[T]:
    """`count` tasks of a split in an order that the seed decides; where there are fewer they come again.

    The eighth of all tasks whose id hashes low is held out, so a task never changes sides. None takes all tasks.

    Raises:
        DataError: The split is empty.
    """
    found = [task for task in tasks if split is None or is_held_out(task.id) == (split == "held_out")]
    if not found:
        raise DataError(f"none of {len(tasks)} tasks is in the split {split!r}")
    chosen: list[T] = []
    turn = 0
    while len(chosen) < count:
        order = list(found)
        random.Random(f"{seed} {turn}").shuffle(order)
        chosen += order
        turn += 1
    return chosen[:count]


def text_of(data: Mapping[str, Any], key: str) -> str:
    """A text of a task.

    Raises:
        DataError: It is something else.
    """
    value = data.get(key)
    if not isinstance(value, str):
        raise DataError(f"{key} is no text but {str(value)[:80]!r}")
    return value
