"""Function calls in several turns against services of a package: here a tiny one of the same shape."""

import asyncio
import json
import zipfile
from contextlib import closing

import pytest

from glmcore.chat import Message, ToolCall
from glmcore.envs import config as sections
from glmcore.envs.functions.bfcl_services import SERVICES, Services, parse_call
from glmcore.envs.registry import open_family
from glmcore.errors import DataError

SOURCE = """
class TicketAPI:
    def __init__(self):
        self.tickets = {}
        self._log = []

    def _load_scenario(self, scenario, long_context=False):
        self.tickets = scenario.get("tickets", {})

    def close_ticket(self, number, note=""):
        self._log.append(number)
        if number not in self.tickets:
            raise KeyError("no such ticket")
        self.tickets[number] = "closed"
        return {"closed": number}

    def count(self):
        return len(self.tickets)
"""
FOLDER = "bfcl_eval/eval_checker/multi_turn_eval/func_source_code"


def described(name):
    return {
        "name": name,
        "description": "",
        "parameters": {"type": "dict", "properties": {"number": {"type": "string"}}},
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder, since a module can be imported from one place in a process."""
    root = tmp_path_factory.mktemp("bfcl")
    line = {
        "id": "multi_turn_base_0",
        "question": [[{"role": "user", "content": "Close a."}], [{"role": "user", "content": "How many?"}], [{"role": "user", "content": "Sing."}]],
        "initial_config": {"TicketAPI": {"tickets": {"a": "open", "b": "open"}}},
        "involved_classes": ["TicketAPI"],
        "excluded_function": ["secret"],
        "missed_function": {"1": ["count"]},
    }  # fmt: skip
    answer = {"id": line["id"], "ground_truth": [["close_ticket('a')"], ["count()"], []]}
    data = root / "bfcl_eval" / "data"
    (data / "possible_answer").mkdir(parents=True)
    (data / "multi_turn_func_doc").mkdir()
    (data / "BFCL_v4_multi_turn_base.json").write_text(json.dumps(line))
    (data / "possible_answer" / "BFCL_v4_multi_turn_base.json").write_text(json.dumps(answer))
    for file in SERVICES.values():
        functions = ["close_ticket", "count", "secret"] if file == "ticket_api" else []
        text = "\n".join(json.dumps(described(name)) for name in functions)
        (data / "multi_turn_func_doc" / f"{file}.json").write_text(text)
    code = root / FOLDER
    code.mkdir(parents=True)
    for folder in (code, *code.relative_to(root).parents):
        (root / folder / "__init__.py").write_text("")
    (code / "ticket_api.py").write_text(SOURCE)
    return str(root)


@pytest.fixture
def family(place):
    with closing(open_family(sections.BfclConfig(data=place), ["multi_turn_base"])) as opened:
        yield opened


def played(family, *messages):
    async def play():
        env = family.new()
        item = next(iter(family.tasks("train", 1, 0) if trained(family) else family.tasks("held_out", 1, 0)))
        return await env.reset(item), [await env.step(message) for message in messages]

    return asyncio.run(play())


def trained(family):
    try:
        return bool(family.tasks("train", 1, 0))
    except DataError:
        return False


def calls(name, **arguments):
    return Message("", "", [ToolCall(name, arguments)])


SAYS = Message("", "Done.")
CLOSE, COUNT = calls("close_ticket", number="a"), calls("count")


def test_a_user_with_several_wishes_is_served_turn_by_turn(family):
    start, results = played(family, CLOSE, SAYS, COUNT, SAYS, SAYS)
    assert [message["content"] for message in start.messages] == ["Close a."]
    assert [tool["function"]["name"] for tool in start.tools] == ["close_ticket"]
    assert start.tools[0]["function"]["parameters"]["type"] == "object"
    assert results[0].observations == [{"role": "tool", "content": '{"closed": "a"}'}]
    told, asked = results[1].observations
    assert '"name": "count"' in told["content"]
    assert asked == {"role": "user", "content": "How many?"}
    assert results[2].observations[0]["content"] == "2"
    assert (results[-1].reward, results[-1].done, results[-1].parts) == (1.0, True, {"turns": 1.0})


@pytest.mark.parametrize(
    ("messages", "share"),
    [
        ([CLOSE, calls("close_ticket", number="b"), SAYS, COUNT, SAYS, SAYS], 1 / 3),  # the state stays another
        ([CLOSE, SAYS, SAYS, SAYS], 2 / 3),  # what was to be found out was not
        ([CLOSE, COUNT, SAYS, COUNT, SAYS, COUNT, SAYS], 2 / 3),  # nothing was to be called in the end
        ([CLOSE, calls("close_ticket", number="c"), SAYS, COUNT, SAYS, SAYS], 1.0),  # a mistake without a trace
        ([calls("_load_scenario", scenario={}), SAYS, COUNT, SAYS, SAYS], 1 / 3),
    ],
)
def test_a_turn_is_right_by_state_and_results(family, messages, share):
    _, results = played(family, *messages)
    assert results[-1].parts == {"turns": pytest.approx(share)}
    assert results[-1].reward == float(share == 1.0)


def test_wrong_calls_are_answered_in_words(family):
    _, results = played(family, calls("fly"), calls("count", x=1), calls("close_ticket", number="z"))
    said = [result.observations[0]["content"] for result in results]
    assert said[0] == "error: there is no function fly"
    assert all(text.startswith("error: ") for text in said)


def test_expected_calls_are_literal_python():
    assert parse_call("f(1, 'a', x=[1.5, {'k': None}])") == ("f", [1, "a"], {"x": [1.5, {"k": None}]})
    for text in ("f(g(1))", "a.f()", "f(", "1", "f(**{'a': 1})"):
        with pytest.raises(DataError, match="cannot be read"):
            parse_call(text)


def test_a_service_that_is_not_there_is_refused(place, tmp_path):
    data = {"services": ["WebSearchAPI"], "state": {}, "long": False}
    with pytest.raises(DataError, match="no service 'WebSearchAPI'"):
        Services(place, data)
    empty = tmp_path / "empty.whl"
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(DataError, match="no service TradingBot"):
        Services(str(empty), data | {"services": ["TradingBot"]})
