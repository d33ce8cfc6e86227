"""Customer service, in the manner of tau-bench: a database behind tools, a policy, and a user who wants something.

An episode is right if the database ends up as the expected actions would leave it, so that nothing forbidden was done
and nothing forgotten, and if the assistant has told the user what there was to tell.

A task is a JSON object: `policy` (text), `database` (table -> id -> record), `changes` (what the service lets be
changed, each `{"table", "field", "from": [values], "to": [values]}`; `to` left out for any value), `user` (what the
user says, line by line: a line after each message of the assistant that is no tool call), `actions` (the expected
changes, each `{"table", "id", "field", "value"}`) and `outputs` (texts that the assistant has to mention).

Source of the idea: Yao et al., tau-bench, arXiv:2406.12045; Barres et al., tau2-bench, arXiv:2506.07982.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from glmcore.chat import Message, ToolCall
from glmcore.envs.config import ServiceConfig
from glmcore.envs.items import choose, read_items
from glmcore.envs.protocol import Item, Split, Start, StepResult
from glmcore.envs.shop import shop_tasks
from glmcore.envs.tool import Tool, as_text, bounded, wrong_call
from glmcore.errors import DataError, RequestError

TOOLS: Mapping[str, Tool] = {
    "get_record": Tool("get_record", "Read one record.", {"table": "string", "id": "string"}),
    "find_records": Tool(
        "find_records", "Find records by a field.", {"table": "string", "field": "string", "value": "any"}
    ),
    "update_record": Tool(
        "update_record",
        "Change a field of a record.",
        {"table": "string", "id": "string", "field": "string", "value": "any"},
    ),
}
MAX_RESULT_CHARS = 4_000
_KEYS = ("policy", "database", "changes", "user", "actions")


class Service:
    """A database that can be read freely and changed as its rules allow.

    Args:
        database: Table, id, record. Copied.
        changes: The rules; see the module.
    """

    def __init__(self, database: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> None:
        self.database: dict[str, dict[str, dict[str, Any]]] = copy.deepcopy(dict(database))
        self._changes = changes

    def call(self, call: ToolCall) -> str:
        """Do what a tool call asks; gives what the caller reads."""
        wrong = wrong_call(call, TOOLS)
        if wrong is not None:
            return wrong
        arguments = call.arguments
        table = self.database.get(arguments["table"])
        if table is None:
            return f"error: there is no table {arguments['table']}; there are {', '.join(self.database)}"
        if call.name == "find_records":
            found = {key: one for key, one in table.items() if one.get(arguments["field"]) == arguments["value"]}
            return bounded(as_text(found), MAX_RESULT_CHARS)
        record = table.get(arguments["id"])
        if record is None:
            return f"error: {arguments['table']} has no record {arguments['id']}"
        if call.name == "get_record":
            return bounded(as_text(record), MAX_RESULT_CHARS)
        return self._update(record, arguments["table"], arguments["field"], arguments["value"])

    def _update(self, record: dict[str, Any], table: str, field: str, value: Any) -> str:
        for rule in self._changes:
            if (rule["table"], rule["field"]) != (table, field):
                continue
            if record.get(field) in rule.get("from", [record.get(field)]) and value in rule.get("to", [value]):
                record[field] = value
                return as_text(record)
        return f"error: {field} of {table} cannot be changed from {as_text(record.get(field))} to {as_text(value)}"


class ServiceEnv:
    """One user. The episode ends when the user has nothing more to say."""

    def __init__(self) -> None:
        self._item: Item | None = None
        self._service = Service({}, ())
        self._lines: list[str] = []
        self._said: list[str] = []

    async def reset(self, task: Item) -> Start:
        """Open the service with the task's database, and let the user speak."""
        data = task.data
        self._item, self._service = task, Service(data["database"], data["changes"])
        first, *self._lines = [str(line) for line in data["user"]]
        messages = [{"role": "system", "content": data["policy"]}, {"role": "user", "content": first}]
        return Start(messages, [tool.schema for tool in TOOLS.values()])

    async def step(self, message: Message) -> StepResult:
        """Do the calls, or let the user answer.

        Raises:
            RequestError: There was no `reset`.
        """
        if self._item is None:
            raise RequestError("reset the environment before the first step")
        if message.tool_calls:
            answers = [self._service.call(call) for call in message.tool_calls]
            return StepResult([{"role": "tool", "content": answer} for answer in answers])
        self._said.append(message.content)
        if self._lines:
            return StepResult([{"role": "user", "content": self._lines.pop(0)}])
        database = float(self._service.database == expected_database(self._item.data))
        told = "\n".join(self._said).lower()
        outputs = float(all(str(text).lower() in told for text in self._item.data.get("outputs", ())))
        return StepResult(reward=database * outputs, done=True, parts={"database": database, "outputs": outputs})

    async def close(self) -> None:
        """Nothing is held."""


def expected_database(task: Mapping[str, Any]) -> dict[str, Any]:
    """The database after the actions that a task expects.

    Raises:
        DataError: An action is not allowed by the task's own rules.
    """
    service = Service(task["database"], task["changes"])
    for action in task["actions"]:
        said = service.call(ToolCall("update_record", dict(action)))
        if said.startswith("error"):
            raise DataError(f"an expected action cannot be done: {said}")
    return service.database


class ServiceFamily:
    """Users of JSON lines, or of a made-up shop.

    Args:
        config: Where they are.
        names: None.

    Raises:
        DataError: The file cannot be read, a line lacks a key, or an expected action is not allowed.
    """

    def __init__(self, config: ServiceConfig, names: Sequence[str]) -> None:
        self._items = shop_tasks() if config.tasks is None else read_items(config.tasks, _KEYS)
        for item in self._items:
            expected_database(item.data)

    def tasks(self, split: Split, count: int, seed: int) -> list[Item]:
        """See `Family.tasks`."""
        return choose(self._items, split, count, seed)

    def new(self) -> ServiceEnv:
        """The environment of one more episode."""
        return ServiceEnv()

    def close(self) -> None:
        """Nothing is held."""
