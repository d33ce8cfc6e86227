"""Domains in tau2's files, with tools of our own and a scripted user."""

import asyncio
import json
import logging
from contextlib import closing
from types import SimpleNamespace

import pytest

from glmcore.chat import Message, ToolCall
from glmcore.envs import config as sections
from glmcore.envs.registry import open_family
from glmcore.envs.tau2 import GOODBYE, first_person, user_lines
from glmcore.errors import ConfigError, DataError


class Desk:
    """Two tools over a list of to-dos, as tau2's toolkits offer theirs."""

    def __init__(self):
        self.db = {"todo": {"1": "open"}}

    def get_tools(self):
        return {
            name: SimpleNamespace(openai_schema={"type": "function", "function": {"name": name, "parameters": {}}})
            for name in ("read", "close_todo")
        }

    def use_tool(self, tool_name, **arguments):
        return getattr(self, tool_name)(**arguments)

    def read(self):
        return self.db

    def close_todo(self, number):
        if number not in self.db["todo"]:
            raise ValueError(f"no to-do {number}")
        self.db["todo"][number] = "done"
        return "closed"

    def is_open(self, number):
        return self.db["todo"][number] == "open"

    def update_db(self, update_data):
        self.db["todo"] |= update_data["todo"]

    def get_db_hash(self):
        return json.dumps(self.db, sort_keys=True)


def in_environment():
    return SimpleNamespace(tools=Desk(), policy="")


SCENARIO = {
    "persona": None,
    "instructions": {
        "domain": "desk",
        "reason_for_call": "You want to-do 1 closed.",
        "known_info": "You are Ada.",
        "unknown_info": None,
        "task_instructions": "Ask the agent to tell you how many are left.",
    },
}
CLOSE = {"action_id": "a", "name": "close_todo", "arguments": {"number": "1"}}


def task(id_="t", **criteria):
    return {"id": id_, "user_scenario": SCENARIO, "initial_state": None, "evaluation_criteria": criteria}


def opened(tmp_path, *tasks, toolkit="test_tau2:Desk"):
    (tmp_path / "policy.md").write_text("Be kind.")
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    return closing(open_family(sections.Tau2Config(domain=str(tmp_path), toolkit=toolkit)))


def played(family, item, *messages):
    async def play():
        env = family.new()
        start = await env.reset(item)
        results = [await env.step(message) for message in messages]
        await env.close()
        return start, results

    return asyncio.run(play())


def only(family):
    tasks = {item.id: item for split in ("train", "held_out") for item in tasks_of(family, split)}
    [item] = tasks.values()
    return item


def tasks_of(family, split):
    try:
        return family.tasks(split, 1, 0)
    except DataError:
        return []


def says(content, *calls):
    return Message("", content, [ToolCall(*call) for call in calls])


CLOSES = says("", ("close_todo", {"number": "1"}))
TALK = [says("Hello."), says("None is left."), says("Bye.")]


@pytest.mark.parametrize("toolkit", ["test_tau2:Desk", "test_tau2:in_environment"])
def test_an_episode_is_right_if_the_database_ends_as_the_actions_leave_it(tmp_path, toolkit):
    with opened(tmp_path, task(actions=[CLOSE]), toolkit=toolkit) as family:
        start, results = played(family, only(family), CLOSES, says("", ("read", {})), *TALK)
        assert [message["role"] for message in start.messages] == ["system", "user"]
        assert start.messages[1]["content"] == "I want to-do 1 closed."
        assert [tool["function"]["name"] for tool in start.tools] == ["read", "close_todo"]
        assert results[0].observations == [{"role": "tool", "content": "closed"}]
        assert results[1].observations[0]["content"] == '{"todo": {"1": "done"}}'
        assert [said.observations[0]["content"] for said in results[2:4]] == [
            "I am Ada.",
            "Ask the agent to tell me how many are left.",
        ]
        assert results[4].observations == [{"role": "user", "content": GOODBYE}]


def judged(family, *messages):
    lines = user_lines(SCENARIO)
    _, results = played(family, only(family), *messages, *[says("Well.")] * len(lines))
    assert results[-1].done
    return results[-1]


def test_rewards_are_made_of_what_the_task_names(tmp_path):
    with opened(tmp_path, task(actions=[CLOSE], communicate_info=["1200"])) as family:
        done = judged(family, CLOSES, says("There are 1,200 left."))
        assert (done.reward, done.parts) == (1.0, {"database": 1.0, "told": 1.0})
        assert judged(family, CLOSES).parts == {"database": 1.0, "told": 0.0}
        assert judged(family, says("1200")).reward == 0.0


def test_actions_and_assertions_can_be_asked_for(tmp_path):
    shut = {"env_type": "assistant", "func_name": "is_open", "arguments": {"number": "1"}, "assert_value": False}
    criteria = {"actions": [CLOSE], "env_assertions": [shut], "reward_basis": ["ACTION", "ENV_ASSERTION"]}
    with opened(tmp_path, task(**criteria)) as family:
        assert judged(family, CLOSES).parts == {"actions": 1.0, "assertions": 1.0}
        assert judged(family).parts == {"actions": 0.0, "assertions": 0.0}
        other = judged(family, says("", ("close_todo", {"number": "2"}), ("fly", {})))
        assert other.parts["actions"] == 0.0


def test_a_wrong_call_is_answered_in_words(tmp_path):
    with opened(tmp_path, task(actions=[])) as family:
        _, [result] = played(
            family, only(family), says("", ("close_todo", {"number": "9"}), ("fly", {}), ("read", {"tool_name": "x"}))
        )
        said = [message["content"] for message in result.observations]
        assert said[0] == "error: no to-do 9"
        assert said[1] == "error: there is no tool fly; there are read, close_todo"
        assert said[2].startswith("error: ")


def test_a_task_may_begin_with_another_database(tmp_path):
    state = {"initialization_data": {"agent_data": {"todo": {"2": "open"}}, "user_data": None}, "message_history": None}
    state["initialization_actions"] = [
        {"env_type": "assistant", "func_name": "close_todo", "arguments": {"number": "1"}}
    ]
    with opened(tmp_path, task(actions=[]) | {"initial_state": state}) as family:
        _, results = played(family, only(family), says("", ("read", {})))
        assert json.loads(results[0].observations[0]["content"]) == {"todo": {"1": "done", "2": "open"}}
        assert judged(family).reward == 1.0
        assert judged(family, says("", ("close_todo", {"number": "2"}))).reward == 0.0


def test_tasks_that_need_a_model_or_a_user_with_tools_are_left_out_and_told(tmp_path, caplog):
    model = task("m", nl_assertions=["The agent is kind."], reward_basis=["DB", "NL_ASSERTION"])
    user = task("u", actions=[CLOSE | {"requestor": "user"}])
    with caplog.at_level(logging.WARNING), opened(tmp_path, model, user, task("ok", actions=[])) as family:
        assert only(family).id.endswith("/ok")
    assert "2 of 3 tasks" in caplog.text
    with pytest.raises(DataError, match="takes a model to judge"):
        opened(tmp_path, model)
    with pytest.raises(DataError, match="its user has tools"):
        opened(tmp_path, user)


def test_what_is_no_domain_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"tasks\.json"):
        open_family(sections.Tau2Config(domain=str(tmp_path), toolkit="test_tau2:Desk"))
    with pytest.raises(DataError, match=r"tasks\.json"):
        opened(tmp_path, {"user_scenario": SCENARIO})
    with pytest.raises(ConfigError, match="no environment at"):
        opened(tmp_path, task(), toolkit="no_such_package:get")


def test_scenarios_are_spoken_in_the_first_person():
    assert first_person("You are Yusuf. Your order is late; it was sent to you.") == (
        "I am Yusuf. My order is late; it was sent to me."
    )
    assert first_person("You've lost your key, you're sad.") == "I've lost my key, I'm sad."
    assert user_lines({"instructions": "You want help."}) == ["I want help.", GOODBYE]
