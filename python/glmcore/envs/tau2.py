"""Customer service in the files of tau2-bench: a domain's tasks and policy, tools of its own, and a user by script.

A domain is a folder with `tasks.json` and `policy.md`. Its tools and its database are Python, so they come from a
factory that the recipe names: `tau2.domains.retail.environment:get_environment` of an installed tau2, or a function of
one's own that gives a `Toolkit`. The benchmark's user is a large language model; here the user says what the scenario
tells, a part after each message of the assistant, and then that this is all. So rewards are for training and for
comparing checkpoints, not for the benchmark's table.

Source: Barres et al., tau2-bench, arXiv:2506.07982; shape of the files and rules of the rewards as in its package
(`tau2/data_model/tasks.py`, `tau2/evaluator`).
"""

import copy
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from glmcore.chat import Message, ToolCall
from glmcore.envs.config import Tau2Config
from glmcore.envs.factory import find_factory
from glmcore.envs.items import choose
from glmcore.envs.protocol import Item, Split, Start, StepResult
from glmcore.envs.tool import bounded
from glmcore.errors import DataError, RequestError

logger = logging.getLogger(__name__)
MAX_RESULT_CHARS = 8_000
GOODBYE = "That is all, thank you."
_JUDGED = ("DB", "COMMUNICATE", "ACTION", "ENV_ASSERTION")
_FIRST_PERSON = (
    (r"\byou are\b", "I am"), (r"\byou were\b", "I was"), (r"\byou'(re|ve|d|ll)\b", r"I'\1"), (r"\bI're\b", "I'm"),
    (r"\b(to|for|with|from|of|give|tell|help) you\b", r"\1 me"), (r"\byourself\b", "myself"), (r"\byours\b", "mine"),
    (r"\byour\b", "my"), (r"\byou\b", "I"),
)  # fmt: skip


class Toolkit(Protocol):
    """A domain's tools over its database: tau2's `ToolKitBase`, or anything that has these."""

    def get_tools(self) -> Mapping[str, Any]:
        """Tools by name, each with its description as `openai_schema`."""
        ...

    def use_tool(self, tool_name: str, **arguments: Any) -> Any:
        """Call a tool; what it raises is what the caller reads. Assertions of tasks are called as attributes."""
        ...

    def update_db(self, update_data: dict[str, Any]) -> None:
        """Change the database before a task begins."""
        ...

    def get_db_hash(self) -> str:
        """Says whether two databases are the same."""
        ...


class Tau2Env:
    """One user. The episode ends when the user has nothing more to say."""

    def __init__(self, new_toolkit: Callable[[], Toolkit], policy: str) -> None:
        self._new_toolkit = new_toolkit
        self._policy = policy
        self._item: Item | None = None

    async def reset(self, task: Item) -> Start:
        """Set up the database as the task wants it, and let the user speak."""
        self._item, self._toolkit = task, self._prepared(task.data)
        self._calls: list[ToolCall] = []
        self._said: list[str] = []
        first, *self._lines = user_lines(task.data["user_scenario"])
        tools = [tool.openai_schema for tool in self._toolkit.get_tools().values()]
        return Start([{"role": "system", "content": self._policy}, {"role": "user", "content": first}], tools)

    async def step(self, message: Message) -> StepResult:
        """Do the calls, or let the user answer.

        Raises:
            RequestError: There was no `reset`.
        """
        if self._item is None:
            raise RequestError("reset the environment before the first step")
        if message.tool_calls:
            self._calls += message.tool_calls
            answers = [
                bounded(_call(self._toolkit, one.name, one.arguments), MAX_RESULT_CHARS) for one in message.tool_calls
            ]
            return StepResult([{"role": "tool", "content": answer} for answer in answers])
        self._said.append(message.content)
        if self._lines:
            return StepResult([{"role": "user", "content": self._lines.pop(0)}])
        parts = self._judge(self._item.data.get("evaluation_criteria") or {})
        return StepResult(reward=float(all(parts.values())), done=True, parts=parts)

    async def close(self) -> None:
        """Nothing is held."""

    def _prepared(self, data: Mapping[str, Any]) -> Toolkit:
        toolkit = self._new_toolkit()
        state = data.get("initial_state") or {}
        changes = (state.get("initialization_data") or {}).get("agent_data")
        if changes:
            toolkit.update_db(copy.deepcopy(changes))
        for action in state.get("initialization_actions") or ():
            getattr(toolkit, action["func_name"])(**copy.deepcopy(action["arguments"]))
        return toolkit

    def _judge(self, criteria: Mapping[str, Any]) -> dict[str, float]:
        """Whether each thing is right that the task's reward is made of."""
        right: dict[str, float] = {}
        actions = criteria.get("actions") or ()
        for basis in reward_basis(criteria):
            if basis == "DB":
                assert self._item is not None  # there was a reset
                wanted = self._prepared(self._item.data)
                for action in actions:
                    _call(wanted, action["name"], action["arguments"])
                right["database"] = float(self._toolkit.get_db_hash() == wanted.get_db_hash())
            elif basis == "ACTION":
                right["actions"] = float(all(any(_is_done(one, call) for call in self._calls) for one in actions))
            elif basis == "COMMUNICATE":
                said = [text.lower().replace(",", "") for text in self._said]
                told = criteria.get("communicate_info") or ()
                right["told"] = float(all(any(info.lower() in text for text in said) for info in told))
            else:
                holds = [
                    bool(getattr(self._toolkit, one["func_name"])(**one["arguments"])) == one.get("assert_value", True)
                    for one in criteria.get("env_assertions") or ()
                ]
                right["assertions"] = float(all(holds))
        return right


class Tau2Family:
    """The tasks of a domain that can be judged without a model.

    Args:
        config: Where they are.
        names: None.

    Raises:
        ConfigError: The factory is not there.
        DataError: A file cannot be read, or no task can be judged.
    """

    def __init__(self, config: Tau2Config, names: Sequence[str]) -> None:
        folder = Path(config.domain)
        try:
            self._policy = (folder / "policy.md").read_text(encoding="utf-8")
            found = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
            tasks = [Item(f"tau2/{folder.name}/{one['id']}", one) for one in found]
            self._items = [item for item in tasks if not why_not(item.data)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{folder} is no domain of tau2 with tasks.json and policy.md: {error!r}") from None
        left_out = [reason for item in tasks if (reason := why_not(item.data))]
        if left_out:
            logger.warning("%d of %d tasks of %s are left out: %s", len(left_out), len(tasks), folder, left_out[0])
        if not self._items:
            raise DataError(
                f"{folder} has no task that can be judged here: {left_out[0] if left_out else 'it is empty'}"
            )
        self._factory = find_factory(config.toolkit)

    def tasks(self, split: Split, count: int, seed: int) -> list[Item]:
        """See `Family.tasks`."""
        return choose(self._items, split, count, seed)

    def new(self) -> Tau2Env:
        """The environment of one more episode."""
        return Tau2Env(self._new_toolkit, self._policy)

    def _new_toolkit(self) -> Toolkit:
        made = self._factory()
        return made if hasattr(made, "use_tool") else made.tools

    def close(self) -> None:
        """Nothing is held."""


def reward_basis(criteria: Mapping[str, Any]) -> Sequence[str]:
    """What the reward of a task is made of; the benchmark's default is the database and what the user was told."""
    return criteria.get("reward_basis") or ("DB", "COMMUNICATE")


def why_not(task: Mapping[str, Any]) -> str | None:
    """Why a task cannot be posed or judged here; None if it can."""
    criteria, state = task.get("evaluation_criteria") or {}, task.get("initial_state") or {}
    if beyond := [basis for basis in reward_basis(criteria) if basis not in _JUDGED]:
        return f"its reward is made of {', '.join(beyond)}, which takes a model to judge"
    used = [*(criteria.get("actions") or ()), *(criteria.get("env_assertions") or ())]
    if any("user" in (one.get("requestor"), one.get("env_type")) for one in used):
        return "its user has tools too"
    setting_up = state.get("initialization_actions") or ()
    if any(one.get("env_type") == "user" for one in setting_up) or (state.get("initialization_data") or {}).get(
        "user_data"
    ):
        return "its user has a device too"
    return "it begins within a conversation" if state.get("message_history") else None


def user_lines(scenario: Mapping[str, Any]) -> list[str]:
    """What a scenario's user says, message by message: why they call, what they know, what else they want, goodbye."""
    told = scenario["instructions"]
    parts = [told] if isinstance(told, str) else [
        told.get(key) for key in ("reason_for_call", "known_info", "task_instructions")
    ]  # fmt: skip
    return [*(first_person(part.strip()) for part in parts if part and part.strip()), GOODBYE]


def first_person(text: str) -> str:
    """A scenario as its user would say it: it is written to the one who plays the user."""
    for pattern, ours in _FIRST_PERSON:
        text = re.sub(pattern, ours, text, flags=re.IGNORECASE)
    return re.sub(r"(^|[.!?]\s+)(my|me|mine)\b", lambda found: found[1] + found[2].capitalize(), text)


def _call(toolkit: Toolkit, name: str, arguments: Mapping[str, Any]) -> str:
    if name not in toolkit.get_tools():
        return f"error: there is no tool {name}; there are {', '.join(toolkit.get_tools())}"
    try:
        return _as_text(toolkit.use_tool(name, **copy.deepcopy(dict(arguments))))
    except Exception as error:  # a tool says so what is wrong with a call
        return f"error: {error}"


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=lambda model: model.model_dump(mode="json"))


def _is_done(action: Mapping[str, Any], call: ToolCall) -> bool:
    """Whether a call is an expected action, in the arguments that the task compares."""
    compared = action.get("compare_args")
    names = call.arguments.keys() if compared is None else compared
    wanted, given = ({n: of[n] for n in names if n in of} for of in (action["arguments"], call.arguments))
    return action["name"] == call.name and wanted == given
