import asyncio
import json
import shutil
import threading
import zipfile
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmcore.chat import Message, ToolCall
from glmcore.data.lookups import SEARCH_TOOL, generate_lookups, to_messages, to_text
from glmcore.envs import config as sections
from glmcore.envs.functions.checker import calls_match
from glmcore.envs.items import choose
from glmcore.envs.protocol import Item
from glmcore.envs.registry import FAMILIES, list_tasks, open_family
from glmcore.envs.sandbox.config import SandboxConfig
from glmcore.errors import ConfigError, DataError, EnvironmentFailure
from glmcore.rl.config import RLConfig

OPEN = SandboxConfig(kind="subprocess", memory="rlimit", warm=1)
BOXED = SandboxConfig(warm=1)
needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")


def says(text, *calls):
    return Message("", text, [ToolCall(name, arguments) for name, arguments in calls])


def lines(path, *objects):
    path.write_text("".join(json.dumps(one) + "\n" for one in objects))
    return str(path)


def run(family, task, *messages):
    """Play given messages; the start and all results."""

    async def go():
        env = family.new()
        start = await env.reset(task)
        results = [await env.step(message) for message in messages]
        await env.close()
        return start, results

    return asyncio.run(go())


def reward(family, task, *messages):
    last = run(family, task, *messages)[1][-1]
    assert last.done
    return last.reward


def only_task(family):
    for split in ("train", "held_out"):
        try:
            return family.tasks(split, 1, 0)[0]
        except DataError:
            continue
    raise AssertionError


def test_every_environment_has_a_section_of_the_recipe_and_a_class():
    kinds = [
        kind
        for kind in vars(sections).values()
        if isinstance(kind, type) and "name" in getattr(kind, "model_fields", {})
    ]
    names = {kind.model_fields["name"].default for kind in kinds}
    assert names == {*FAMILIES, "custom"}


def rl_section(**values):
    needed = {"max_steps": 1, "learning_rate": 1e-3, "optimizer": {"matrices": "adamw"}}
    return RLConfig.from_dict(needed | values, "test")


def test_a_recipe_names_its_environment_with_the_options_of_that_one():
    assert rl_section(tasks=["chain_sum"]).environment.name == "reasoning_gym"
    chosen = rl_section(environment={"name": "search", "results": 3, "limits": {"reward_range": [-1, 1]}})
    assert chosen.environment.results == 3
    with pytest.raises(ConfigError, match="unknown key"):
        rl_section(environment={"name": "search", "problems": "x"})
    with pytest.raises(ConfigError, match="names no generator"):
        rl_section()
    with pytest.raises(ConfigError, match="no parts to name"):
        rl_section(environment={"name": "search"}, tasks=["chain_sum"])


def test_a_section_comes_back_from_a_file():
    section = rl_section(environment={"name": "search"})
    assert RLConfig.from_dict(json.loads(section.model_dump_json()), "saved") == section


def make_family(options, names):
    assert (options, names) == ({"a": 1}, ["x"])
    return open_family(sections.SearchConfig())


def test_a_user_brings_an_environment_of_their_own():
    custom = sections.CustomConfig(factory="test_environments:make_family", options={"a": 1})
    assert list_tasks(custom, ["x"], "train", 3, 0)[0].id.startswith("lookup/")
    with pytest.raises(ConfigError, match="there is no environment at 'nowhere:x'"):
        open_family(sections.CustomConfig(factory="nowhere:x"))


@given(ids=st.sets(st.text(min_size=1, max_size=4), min_size=1, max_size=40), seed=st.integers(0, 9))
def test_no_task_is_in_both_splits_and_the_order_follows_from_the_seed(ids, seed):
    items, found = [Item(one) for one in sorted(ids)], {}
    for split in ("train", "held_out"):
        try:
            found[split] = choose(items, split, 100, seed)
            assert found[split] == choose(items, split, 100, seed)
            assert len(found[split]) == 100
        except DataError:
            found[split] = []
    chosen = [{item.id for item in part} for part in found.values()]
    assert chosen[0] | chosen[1] == ids
    assert not chosen[0] & chosen[1]


def test_reasoning_problems_come_from_any_generator_with_its_options():
    section = sections.ReasoningGymConfig(options={"basic_arithmetic": {"max_terms": 2}})
    with closing(open_family(section, ["basic_arithmetic", "chain_sum"])) as family:
        tasks = family.tasks("train", 6, 0)
        assert {task.task for task in tasks} == {"basic_arithmetic", "chain_sum"}
        assert [reward(family, task, says(task.answer)) for task in tasks] == [1.0] * 6
        assert reward(family, tasks[0], says("nonsense")) == 0.0


def test_a_search_finds_what_the_question_needs_and_the_answer_is_judged():
    with closing(open_family(sections.SearchConfig())) as family:
        [task] = family.tasks("held_out", 1, 0)
        name = task.data["question"].split()[-1].rstrip("?")
        start, results = run(
            family, task, says("", ("search", {"query": name})), says(task.data["answers"].upper() + ".")
        )
        assert start.tools == [SEARCH_TOOL]
        assert results[0].observations[0]["content"].startswith(f"name {name}\nfriend ")
        assert (results[1].reward, results[1].parts) == (1.0, {"right": 1.0, "searches": 1.0})
        _, [wrong] = run(family, task, says("", ("search", {"words": name})))
        assert wrong.observations[0]["content"].startswith("error")


def test_transcripts_of_lookups_say_what_the_environment_would():
    train = list(generate_lookups(50, 0, held_out=False))
    assert {len(lookup.pages) for lookup in train} == {1, 2}
    with closing(open_family(sections.SearchConfig())) as family:
        for lookup in train[:8]:
            _, *turns = to_messages(lookup, 0.0)
            said = [says(turn["content"], *called(turn)) for turn in turns[::2]]
            item = Item(lookup.id, {"question": lookup.question, "answers": lookup.answer})
            _, results = run(family, item, *said)
            assert [found for result in results[:-1] for found in result.observations] == turns[1::2]
            assert (results[-1].reward, results[-1].done, len(turns[1::2])) == (1.0, True, len(lookup.pages))
    # As if one knew: a search or two too few, for one question in two of two pages none at all.
    hasty = [len(to_messages(lookup, 1.0)) for lookup in train]
    assert {(len(lookup.pages), size) for lookup, size in zip(train, hasty, strict=True)} == {(1, 2), (2, 2), (2, 4)}


def called(message):
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return [(call["name"], call["arguments"]) for call in calls]


def words(lookup):
    return {word for page in lookup.pages for line in page.split("\n") for word in line.split()}


def test_training_data_never_names_a_held_out_person():
    held_out = {lookup.question.split()[-1].rstrip("?") for lookup in generate_lookups(99_999, 0, held_out=True)}
    for lookup in generate_lookups(99_999, 0, held_out=False):
        assert held_out.isdisjoint(words(lookup))


def test_an_exercise_in_reading_asks_what_the_page_before_it_says():
    for lookup in generate_lookups(40, 0, held_out=False):
        lines = to_text(lookup).splitlines()
        assert (lines[0], lines[-2:]) == (lookup.question, [lookup.question, lookup.answer])
        for question, answer in pairwise(lines[1:]):
            if question.endswith("?"):
                page = lookup.pages[question.count(" of ") - 1]
                assert answer in page.split("\n")
                assert answer.split()[0] == question.split()[1]


def test_pages_of_a_user_are_searched_by_relevance(tmp_path):
    pages = lines(tmp_path / "pages", {"title": "Cats", "text": "Cats purr at night."}, {"text": "Dogs bark."})
    questions = lines(tmp_path / "questions", {"question": "What do cats do?", "answers": ["purr", "they purr"]})
    with closing(open_family(sections.SearchConfig(questions=questions, pages=pages))) as family:
        _, results = run(family, only_task(family), says("", ("search", {"query": 'AND "cats* ('})), says("They  purr"))
        assert results[0].observations[0]["content"] == "Cats purr at night."
        assert results[1].reward == 1.0


def test_mathematical_answers_are_equal_in_value(tmp_path):
    problems = lines(tmp_path / "problems", {"question": "Half of three?", "answer": "$\\frac{3}{2}$"})
    with closing(open_family(sections.MathConfig(problems=problems))) as family:
        task = only_task(family)
        assert reward(family, task, says("It is \\boxed{1.5}.")) == 1.0
        assert reward(family, task, says("It is \\boxed{2}.")) == 0.0


def test_a_choice_is_posed_in_the_shape_of_gpqa_and_judged_by_its_letter(tmp_path):
    wrong = {f"Incorrect Answer {number}": f"no{number}" for number in (1, 2, 3)}
    gpqa = {"id": "g", "Question": "Which?", "Correct Answer": "yes", **wrong}
    plain = {"id": "p", "question": "Which?", "options": ["no", "yes"], "answer": "B"}
    for one in (gpqa, plain):
        with closing(open_family(sections.ChoiceConfig(problems=lines(tmp_path / "problems", one)))) as family:
            task = only_task(family)
            letter = next(line[0] for line in task.data["question"].splitlines() if line.endswith(") yes"))
            other = "A" if letter != "A" else "B"
            assert reward(family, task, says(f"Answer: {letter}")) == 1.0
            assert reward(family, task, says(f"Answer: {other}")) == 0.0
    with pytest.raises(DataError, match="neither a letter nor a number"):
        open_family(sections.ChoiceConfig(problems=lines(tmp_path / "problems", {"question": "q", "options": [1, 2]})))


@needs_bubblewrap
def test_programs_are_judged_by_running_them(tmp_path):
    streams = {"id": "a", "prompt": "Double.", "tests": [{"stdin": "2", "stdout": "4"}], "language": "python"}
    shell = {"id": "b", "prompt": "Count.", "tests": [{"stdin": "a b", "stdout": "2"}], "language": "bash"}
    function = {"id": "c", "prompt": "def f(x):\n", "entry_point": "f", "test": "def check(f):\n    assert f(1) == 2\n"}
    with closing(
        open_family(sections.CodeConfig(problems=lines(tmp_path / "p", streams, shell, function), sandbox=BOXED))
    ) as family:
        tasks = {task.id: task for task in [*family.tasks("train", 9, 0)]}
        right = {
            "a": "```python\nprint(int(input()) * 2)\n```",
            "b": "```bash\nwc -w\n```",
            "c": "```python\ndef f(x):\n    return x + 1\n```",
        }
        assert [reward(family, tasks[key], says(right[key])) for key in tasks] == [1.0] * len(tasks)
        assert [reward(family, tasks[key], says("```python\nexit()\n```")) for key in tasks] == [0.0] * len(tasks)
        assert len(tasks) >= 2


@needs_bubblewrap
def test_a_known_solution_of_human_eval_passes():
    with closing(open_family(sections.CodeConfig(sandbox=BOXED))) as family:
        tasks = {task.id: task for split in ("train", "held_out") for task in family.tasks(split, 164, 0)}
        assert len(tasks) == 164
        code = "def add(x: int, y: int):\n    return x + y"
        assert reward(family, tasks["HumanEval/53"], says(f"```python\n{code}\n```")) == 1.0
        assert reward(family, tasks["HumanEval/53"], says("```python\ndef add(x, y):\n    return x\n```")) == 0.0


@needs_bubblewrap
def test_a_folder_lasts_from_call_to_call_and_a_command_judges_it(tmp_path):
    task = {"prompt": "Write 6 * 7 to out.", "files": {"in/a": "6"}, "check": 'test "$(cat out)" = 42'}
    config = sections.WorkspaceConfig(tasks=lines(tmp_path / "tasks", task), sandbox=BOXED, max_result_chars=200)
    with closing(open_family(config)) as family:
        calls = [
            ("read_file", {"path": "in/a"}),
            ("python", {"code": "open('half', 'w').write(str(6 * 7))"}),
            ("shell", {"command": "cat half half; exit 3"}),
            ("write_file", {"path": "out", "content": "42"}),
            ("read_file", {"path": "/etc/shadow"}),
            ("python", {"code": "print('x' * 9999)"}),
            ("python", {"path": 1}),
            ("fly", {}),
        ]
        start, results = run(family, only_task(family), *[says("", call) for call in calls], says("done"))
        said = [result.observations[0]["content"] for result in results[:-1]]
        assert said[:4] == ["6", "[no output]", "4242\n[exit code 3]", "[no output]"]
        assert "[exit code 1]" in said[4]
        assert "characters left out" in said[5]
        assert said[6:] == [
            "error: python takes code",
            "error: there is no tool fly; there are python, shell, read_file, write_file",
        ]
        assert (len(start.tools), results[-1].reward) == (4, 1.0)
        assert reward(family, only_task(family), says("done")) == 0.0


FUNCTION = {"name": "area", "description": "", "parameters": {"type": "dict", "properties": {"base": {"type": "integer"}, "unit": {"type": "string"}}, "required": ["base"]}}  # fmt: skip


def bfcl(tmp_path):
    asked = {"id": "simple_python_0", "question": [[{"role": "user", "content": "Area?"}]], "function": [FUNCTION]}
    answer = {"id": "simple_python_0", "ground_truth": [{"area": {"base": [10], "unit": ["square metres", ""]}}]}
    with zipfile.ZipFile(tmp_path / "bfcl.whl", "w") as wheel:
        wheel.writestr("bfcl_eval/data/BFCL_v4_simple_python.json", json.dumps(asked))
        wheel.writestr("bfcl_eval/data/possible_answer/BFCL_v4_simple_python.json", json.dumps(answer))
        wheel.writestr("bfcl_eval/data/BFCL_v4_irrelevance.json", json.dumps(asked | {"id": "irrelevance_0"}))
    return sections.BfclConfig(data=str(tmp_path / "bfcl.whl"))


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"base": 10}, True),
        ({"base": 10, "unit": "Square-Metres"}, True),
        ({"base": 10.5}, False),
        ({"base": "10"}, False),
        ({"base": True}, False),
        ({"unit": "square metres"}, False),
        ({"base": 10, "unit": "feet"}, False),
        ({"base": 10, "height": 1}, False),
    ],
)
def test_a_function_call_is_right_if_it_is_a_possible_answer(tmp_path, arguments, right):
    with closing(open_family(bfcl(tmp_path), ["simple_python"])) as family:
        start, _ = run(family, only_task(family))
        assert start.tools[0]["function"]["parameters"]["type"] == "object"
        assert reward(family, only_task(family), says("", ("area", arguments))) == float(right)


def test_where_no_function_fits_none_is_to_be_called(tmp_path):
    with closing(open_family(bfcl(tmp_path), ["irrelevance"])) as family:
        assert reward(family, only_task(family), says("I cannot.")) == 1.0
        assert reward(family, only_task(family), says("", ("area", {"base": 10}))) == 0.0
    with pytest.raises(DataError, match="no categories"):
        open_family(bfcl(tmp_path), ["memory"])
    with pytest.raises(DataError, match="pip download"):
        open_family(bfcl(tmp_path), ["multiple"])


@given(order=st.permutations([1, 2, 3]))
def test_parallel_calls_match_in_any_order_each_once(order):
    schemas = {"f": {"properties": {"x": {"type": "integer"}, "y": {"type": "array"}}, "required": ["x"]}}
    expected = [{"f": {"x": [1, 2], "y": [""]}}, {"f": {"x": [2], "y": [""]}}, {"f": {"x": [3], "y": [[1, "a b"], ""]}}]
    calls = [ToolCall("f", {"x": x} | ({"y": [1, "AB"]} if x == 3 else {})) for x in order]
    assert calls_match(calls, expected, schemas)
    assert not calls_match(calls[:2], expected, schemas)
    assert not calls_match([ToolCall("f", {"x": 1})] * 3, expected, schemas)


def test_service_is_right_when_the_database_ends_as_it_should():
    with closing(open_family(sections.ServiceConfig())) as family:
        tasks = family.tasks("train", 300, 0)
        cancel = next(task for task in tasks if task.data["actions"] and task.data["actions"][0]["field"] == "status")
        [action] = cancel.data["actions"]
        bye = [says("Done."), says("Goodbye.")]
        start, results = run(
            family,
            cancel,
            says("", ("get_record", {"table": "orders", "id": action["id"]})),
            says("", ("update_record", action)),
            *bye,
        )
        assert [message["role"] for message in start.messages] == ["system", "user"]
        assert "cancelled" in results[1].observations[0]["content"]
        assert results[2].observations == [{"role": "user", "content": "Thank you, that is all."}]
        assert (results[3].reward, results[3].done) == (1.0, True)
        assert reward(family, cancel, *bye) == 0.0
        other = next(key for key in cancel.data["database"]["orders"] if key != action["id"])
        too_much = ("update_record", action | {"id": other, "field": "address", "value": "x"})
        assert reward(family, cancel, says("", ("update_record", action), too_much), *bye) == 0.0


def test_service_refuses_what_its_rules_forbid_and_asks_for_what_is_to_be_told():
    with closing(open_family(sections.ServiceConfig())) as family:
        tasks = family.tasks("train", 300, 0)
        refused = next(
            task for task in tasks if not task.data["actions"] and task.data["outputs"] in (["shipped"], ["delivered"])
        )
        key = next(key for key, order in refused.data["database"]["orders"].items() if key in refused.data["user"][0])
        wish = ("update_record", {"table": "orders", "id": key, "field": "status", "value": "cancelled"})
        _, results = run(family, refused, says("", wish), says(f"It is {refused.data['outputs'][0]}."), says("Bye."))
        assert results[0].observations[0]["content"].startswith("error: status of orders cannot be changed")
        assert results[2].reward == 1.0
        assert reward(family, refused, says("No."), says("Bye.")) == 0.0


class Server(BaseHTTPRequestHandler):
    """The other side of `glmcore.envs.http`: a task has an answer, and one step."""

    episodes: dict[str, dict] = {}  # noqa: RUF012
    closed: list[str] = []  # noqa: RUF012

    def do_POST(self):
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = getattr(self, self.path.rsplit("/", 1)[1])(given)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(ConnectionError):  # a client that has read enough goes away
            self.wfile.write(data)

    def reset(self, given):
        episode = str(len(self.episodes))
        self.episodes[episode] = given["task"]
        return {
            "episode": episode,
            "messages": [{"role": "user", "content": given["task"]["question"]}],
            "tools": [SEARCH_TOOL],
        }

    def step(self, given):
        task, message = self.episodes[given["episode"]], given["message"]
        if task["answer"] == "garbage":
            return b"[1, 2"
        if task["answer"] == "flood":
            return b'{"done": true, "x": "' + b"x" * 200_000 + b'"}'
        if message["tool_calls"]:
            return {
                "observations": [{"role": "tool", "content": str(message["tool_calls"][0]["function"])}],
                "done": False,
            }
        return {"reward": float(message["content"] == task["answer"]), "done": True, "parts": {"right": 1.0}}

    def close(self, given):
        self.closed.append(given["episode"])
        return {}

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/env"
        server.shutdown()
        thread.join()


def test_an_environment_behind_http_is_played(tmp_path, url):
    tasks = lines(tmp_path / "tasks", {"question": "q", "answer": "a"})
    with closing(open_family(sections.HttpConfig(url=url, tasks=tasks))) as family:
        start, results = run(family, only_task(family), says("", ("search", {"query": "x"})), says("a"))
        assert start.tools == [SEARCH_TOOL]
        assert "query" in results[0].observations[0]["content"]
        assert (results[1].reward, results[1].done, results[1].parts) == (1.0, True, {"right": 1.0})
        assert Server.closed


@pytest.mark.parametrize(("answer", "reason"), [("garbage", "JSONDecodeError"), ("flood", "more than 100000 bytes")])
def test_a_server_that_misbehaves_fails_the_episode_with_the_reason(tmp_path, url, answer, reason):
    tasks = lines(tmp_path / "tasks", {"question": "q", "answer": answer})
    section = sections.HttpConfig(url=url, tasks=tasks, max_answer_bytes=100_000)
    with closing(open_family(section)) as family, pytest.raises(EnvironmentFailure, match=reason):
        run(family, only_task(family), says("x"))


def test_a_server_that_is_away_fails_the_episode(tmp_path):
    tasks = lines(tmp_path / "tasks", {"question": "q"})
    section = sections.HttpConfig(url="http://127.0.0.1:9", tasks=tasks)
    with closing(open_family(section)) as family, pytest.raises(EnvironmentFailure, match="ConnectionRefusedError"):
        run(family, only_task(family))


@pytest.mark.filterwarnings("ignore")
def test_tasks_of_a_verifiers_package_score_our_answers():
    pytest.importorskip("verifiers.v1")
    with closing(open_family(sections.VerifiersConfig(taskset="sums_v1"))) as family:
        task = family.tasks("train", 1, 0)[0]
        start, [result] = run(family, task, says(task.task.data.answer))
        assert start.messages[0]["content"].endswith("+ 1 =")
        assert (result.reward, result.parts) == (1.0, {"right": 0.75, "short": 0.25})
        assert reward(family, task, says("no")) == 0.25
    with pytest.raises(ConfigError, match="no taskset"):
        open_family(sections.VerifiersConfig(taskset="there_is_none"))


def test_lines_that_are_no_tasks_are_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        open_family(sections.MathConfig(problems=str(tmp_path / "none")))
    (tmp_path / "bad").write_text('{"question": "q"}\n')
    with pytest.raises(DataError, match="bad:1 has no answer"):
        open_family(sections.MathConfig(problems=str(tmp_path / "bad")))
    (tmp_path / "bad").write_text("[1]\n")
    with pytest.raises(DataError, match="is no object"):
        open_family(sections.MathConfig(problems=str(tmp_path / "bad")))
