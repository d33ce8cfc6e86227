"""Function calling: the items of the Berkeley Function-Calling Leaderboard, version 4, that have possible answers.

The package `bfcl-eval` carries the data and pins an old numpy, so its wheel is read, not installed.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmcore.chat import Message
from glmcore.envs.config import BfclConfig
from glmcore.envs.functions.bfcl_services import MULTI_TURN, SERVICES, MultiTurnEnv, multi_turn_item
from glmcore.envs.functions.checker import calls_match
from glmcore.envs.items import choose
from glmcore.envs.protocol import Item, Split, Start, StepResult
from glmcore.errors import DataError, RequestError

DOWNLOAD = "pip download --no-deps bfcl-eval==2026.3.23"
NO_CALL = ("irrelevance", "live_irrelevance")
"""Categories in which no function fits, so that the right thing is to call none."""
ANY_CALL = ("live_relevance",)
"""Categories in which any call is right."""
CATEGORIES = (
    "simple_python",
    "multiple",
    "parallel",
    "parallel_multiple",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
    *NO_CALL,
    *ANY_CALL,
)
"""Those that are judged without running anything. Java and JavaScript have values in the syntax of their language."""
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None, "HashMap": "object", "ArrayList": "array"}


class FunctionEnv:
    """One question with functions; the reward is 1 if the calls of the first answer are the right ones."""

    def __init__(self) -> None:
        self._item: Item | None = None

    async def reset(self, task: Item) -> Start:
        """Pose the question and offer the functions."""
        self._item = task
        return Start(task.data["messages"], task.data["tools"])

    async def step(self, message: Message) -> StepResult:
        """Compare the calls.

        Raises:
            RequestError: There was no `reset`.
        """
        if self._item is None:
            raise RequestError("reset the environment before the first step")
        data = self._item.data
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in data["tools"]}
        if not message.finished_thinking:
            right = False
        elif data["calls"] is None:
            right = any(call.name in schemas for call in message.tool_calls)
        else:
            right = calls_match(message.tool_calls, data["calls"], schemas)
        return StepResult(reward=float(right), done=True)

    async def close(self) -> None:
        """Nothing is held."""


class BfclEnv:
    """A question with functions, or a user with several wishes: the item says which."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._env: FunctionEnv | MultiTurnEnv = FunctionEnv()

    async def reset(self, task: Item) -> Start:
        """See `Environment.reset`."""
        self._env = MultiTurnEnv(self._place) if "turns" in task.data else FunctionEnv()
        return await self._env.reset(task)

    async def step(self, message: Message) -> StepResult:
        """See `Environment.step`."""
        return await self._env.step(message)

    async def close(self) -> None:
        """Nothing is held."""


class BfclFamily:
    """Categories of the leaderboard, all items of all of them together.

    Args:
        config: Where the data is.
        names: Of `CATEGORIES` or `MULTI_TURN`.

    Raises:
        DataError: A category is unknown or cannot be judged here, or its files cannot be read.
    """

    def __init__(self, config: BfclConfig, names: Sequence[str]) -> None:
        unknown = sorted(set(names) - set(CATEGORIES) - set(MULTI_TURN))
        if unknown:
            known = ", ".join([*CATEGORIES, *MULTI_TURN])
            raise DataError(f"bfcl has no categories {unknown} that can be judged here; it has {known}")
        self._place = config.data
        self._items = [item for name in names for item in read_category(config.data, name)]

    def tasks(self, split: Split, count: int, seed: int) -> list[Item]:
        """See `Family.tasks`."""
        return choose(self._items, split, count, seed)

    def new(self) -> "BfclEnv":
        """The environment of one more episode."""
        return BfclEnv(self._place)

    def close(self) -> None:
        """Nothing is held."""


def read_category(place: str, category: str) -> list[Item]:
    """The items of a category.

    Args:
        place: The wheel of `bfcl-eval`, or a folder with its files.
        category: Of `CATEGORIES` or `MULTI_TURN`.

    Raises:
        DataError: They cannot be read.
    """
    questions = _read(place, f"BFCL_v4_{category}.json")
    answers: Mapping[str, Any] = {}
    if category not in NO_CALL + ANY_CALL:
        answers = {
            line["id"]: line["ground_truth"] for line in _read(place, f"possible_answer/BFCL_v4_{category}.json")
        }
    try:
        if category in MULTI_TURN:
            tools = {name: _descriptions(place, file) for name, file in SERVICES.items()}
            return [multi_turn_item(line, answers[line["id"]], tools) for line in questions]
        return [_item(line, category, answers) for line in questions]
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{place}: an item of {category} has another shape than version 4: {error!r}") from None


def _descriptions(place: str, file: str) -> list[dict[str, Any]]:
    functions = _read(place, f"multi_turn_func_doc/{file}.json")
    return [{"type": "function", "function": _function(function)} for function in functions]


def _item(line: Mapping[str, Any], category: str, answers: Mapping[str, Any]) -> Item:
    calls = None if category in ANY_CALL else [] if category in NO_CALL else answers[line["id"]]
    tools = [{"type": "function", "function": _function(function)} for function in line["function"]]
    return Item(f"bfcl/{line['id']}", {"messages": line["question"][0], "tools": tools, "calls": calls})


def _function(function: Mapping[str, Any]) -> dict[str, Any]:
    return {**function, "parameters": _schema(function["parameters"])}


def _schema(schema: Any) -> Any:
    """The schema with the type names of JSON schema in the place of Python's."""
    if isinstance(schema, list):
        return [_schema(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    plain = {key: _schema(value) for key, value in schema.items()}
    kind = plain.get("type")
    if isinstance(kind, str) and kind in _TYPES:
        plain["type"] = _TYPES[kind]
        if plain["type"] is None:
            del plain["type"]
    return plain


def _read(place: str, name: str) -> list[dict[str, Any]]:
    try:
        if Path(place).is_dir():
            [file] = [path for path in Path(place).rglob(Path(name).name) if str(path).endswith(f"data/{name}")]
            text = file.read_text(encoding="utf-8")
        else:
            with zipfile.ZipFile(place) as wheel:
                text = wheel.read(f"bfcl_eval/data/{name}").decode()
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{place} has no {name} of bfcl-eval ({error}); get it with: {DOWNLOAD}") from None
