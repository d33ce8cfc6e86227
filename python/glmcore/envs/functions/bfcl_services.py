"""Function calling in several turns: items of the Berkeley Function-Calling Leaderboard with services.

The services (a file system, a broker, a car, ...) are Python classes inside of the package `bfcl-eval`, so they are
imported from its wheel, which needs no installation; whoever names it trusts it. They keep their state in memory.

Source of the rules: `multi_turn_checker.py` of the package. After each of the user's turns the public state of all
services has to be that of the expected calls, and the results of the expected calls have to be among those that the
model has seen so far; where no call is expected, none may be made.
"""

import ast
import contextlib
import copy
import importlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glmcore.chat import Message, ToolCall
from glmcore.envs.protocol import Item, Start, StepResult
from glmcore.envs.tool import bounded
from glmcore.errors import DataError, RequestError

MULTI_TURN = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
"""Categories of several turns. Those about memory and web search need models and the network."""
SERVICES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
"""Classes and the files, of code and of descriptions, that they are in."""
MAX_RESULT_CHARS = 20_000
_PACKAGE = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
_MORE_TOOLS = "From now on you also have these functions:"
_import_lock = threading.Lock()


def multi_turn_item(line: Mapping[str, Any], answers: Sequence[Sequence[str]], tools: Mapping[str, list[Any]]) -> Item:
    """The task of an item.

    Args:
        line: The item.
        answers: Expected calls of each turn, as Python.
        tools: Descriptions of each service's functions.
    """
    left_out = {name for names in line.get("missed_function", {}).values() for name in names}
    offered = [tool for name in line["involved_classes"] for tool in tools[name]]
    offered = [tool for tool in offered if tool["function"]["name"] not in line.get("excluded_function", ())]
    return Item(
        f"bfcl/{line['id']}",
        {
            "turns": line["question"],
            "tools": [tool for tool in offered if tool["function"]["name"] not in left_out],
            "later_tools": {
                int(turn): [tool for tool in offered if tool["function"]["name"] in names]
                for turn, names in line.get("missed_function", {}).items()
            },
            "answers": answers,
            "services": line["involved_classes"],
            "state": line.get("initial_config", {}),
            "long": "long_context" in line["id"],
        },
    )


class Services:
    """The services of one item, in a state of their own.

    Args:
        place: The wheel of `bfcl-eval`, or a folder with its files.
        data: Of a task made by `multi_turn_item`.

    Raises:
        DataError: The package has no such service.
    """

    def __init__(self, place: str, data: Mapping[str, Any]) -> None:
        self._services: list[Any] = []
        for name in data["services"]:
            service = _service_class(place, name)()
            if hasattr(service, "_load_scenario"):
                service._load_scenario(copy.deepcopy(data["state"].get(name, {})), long_context=data["long"])
            self._services.append(service)
        self.results: list[str] = []
        """Of all calls so far."""

    def call(self, name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> str:
        """Call a function; what it raises is what the caller reads."""
        found = [service for service in self._services if callable(getattr(service, name, None))]
        if name.startswith("_") or not found:
            result = f"error: there is no function {name}"
        else:
            try:
                result = _as_text(getattr(found[0], name)(*copy.deepcopy(arguments), **copy.deepcopy(dict(named))))
            except Exception as error:  # whatever a service says of a wrong call
                result = f"error: {error}"
        self.results.append(result)
        return result

    @property
    def state(self) -> list[dict[str, Any]]:
        """What is public of each."""
        return [{key: value for key, value in vars(one).items() if not key.startswith("_")} for one in self._services]


class MultiTurnEnv:
    """One user with several wishes. Each ends with a message without calls; the reward is 1 if all came out right."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._data: Mapping[str, Any] | None = None

    async def reset(self, task: Item) -> Start:
        """Set up the services twice, for the model and for the expected calls, and pose the first wish."""
        self._data, self._turn, self._right = task.data, 0, 0
        self._services, self._expected = (Services(self._place, task.data) for _ in range(2))
        self._calls = 0
        return Start([*self._data["turns"][0]], self._data["tools"])

    async def step(self, message: Message) -> StepResult:
        """Do the calls, or judge the turn and pose the next wish.

        Raises:
            RequestError: There was no `reset`.
        """
        if self._data is None:
            raise RequestError("reset the environment before the first step")
        if message.tool_calls:
            self._calls += len(message.tool_calls)
            return StepResult([self._do(call) for call in message.tool_calls])
        turns = self._data["turns"]
        self._right += self._judge(self._data["answers"][self._turn])
        self._turn, self._calls = self._turn + 1, 0
        if self._turn < len(turns):
            return StepResult(self._wish(turns[self._turn], self._data["later_tools"].get(self._turn, ())))
        share = self._right / len(turns)
        return StepResult(reward=float(share == 1.0), done=True, parts={"turns": share})

    async def close(self) -> None:
        """Nothing is held."""

    def _do(self, call: ToolCall) -> dict[str, Any]:
        return {
            "role": "tool",
            "content": bounded(self._services.call(call.name, (), call.arguments), MAX_RESULT_CHARS),
        }

    def _judge(self, answers: Sequence[str]) -> bool:
        known = len(self._expected.results)
        for answer in answers:
            name, arguments, named = parse_call(answer)
            self._expected.call(name, arguments, named)
        if not answers:
            return self._calls == 0
        return (
            self._calls > 0
            and self._services.state == self._expected.state
            and _are_among(self._expected.results[known:], self._services.results)
        )

    def _wish(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> list[dict[str, Any]]:
        """The user's next messages; functions that come later, which the item says without words, are told in them."""
        said = [dict(message) for message in messages]
        if tools:
            told = "\n".join([_MORE_TOOLS, *(json.dumps(tool, ensure_ascii=False) for tool in tools)])
            said = [{"role": "user", "content": told}, *said]
        return said


def parse_call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name, arguments and named arguments of a call that is written as Python, with literal values.

    Raises:
        DataError: It is something else.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            named = {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg is not None}
            if len(named) == len(call.keywords):
                return call.func.id, [ast.literal_eval(one) for one in call.args], named
        reason = "it is no call of a function by its name with its arguments one by one"
    except (SyntaxError, TypeError, ValueError) as error:
        reason = str(error)
    raise DataError(f"the expected call {text[:80]!r} cannot be read: {reason}")


def _service_class(place: str, name: str) -> Any:
    if name not in SERVICES:
        raise DataError(f"bfcl-eval has no service {name!r} that can be run here; it has {', '.join(SERVICES)}")
    with _import_lock, _importable(place):
        try:
            return getattr(importlib.import_module(f"{_PACKAGE}.{SERVICES[name]}"), name)
        except (ImportError, AttributeError) as error:
            raise DataError(f"{place} has no service {name} of bfcl-eval: {error}") from None


@contextlib.contextmanager
def _importable(place: str) -> Iterator[None]:
    """Let the package's modules be found while they are imported."""
    path = place
    if Path(place).is_dir():
        path = str(
            next(
                (
                    folder.parent
                    for folder in [Path(place), *Path(place).rglob("bfcl_eval")]
                    if folder.name == "bfcl_eval"
                ),
                place,
            )
        )
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict) else str(value)


def _are_among(wanted: Sequence[str], found: Sequence[str]) -> bool:
    """Whether each result was found as often as it is wanted, in any order."""
    left = list(found)
    for result in wanted:
        if result not in left:
            return False
        left.remove(result)
    return True
