"""What goes before, beside and after reinforcement learning: probing, evaluation, distillation, runs from one model."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_curriculum import plain_kind
from test_tasks import tasks

from glmcore.chat import apply_chat_template, parse_reply
from glmcore.cli import main
from glmcore.config import merge
from glmcore.data.config import DataConfig
from glmcore.data.prepare import prepare
from glmcore.errors import ConfigError, RunError
from glmcore.recipe import RECIPES, Recipe
from glmcore.rl.curriculum.config import DifficultyConfig
from glmcore.rl.curriculum.difficulty import PassRecord
from glmcore.rl.distill import Answer, conversation, distill, repetition, select
from glmcore.rl.distill_config import DistillConfig
from glmcore.rl.evaluation import SuiteResult, read_evaluations, summarize_answers
from glmcore.rl.fork import fork_run
from glmcore.rl.pool import Pool, check_apart, distinct, task_source, training_pool
from glmcore.rl.probe import attempt_seed, probe, probe_tasks
from glmcore.rl.result_file import ResultFile, read_results
from glmcore.rl.stage import reinforce
from glmcore.rundir import open_run
from glmcore.tokenizer import Tokenizer
from glmcore.train.stages import train_stages

TINY = Path(__file__).parent / "tiny.toml"
DIFFICULTY = DifficultyConfig(few_attempts=4, many_attempts=64)


class Memory:
    """Results that are kept in memory, until a kill after so many."""

    def __init__(self, done=(), most=10**9):
        self.found, self.done, self.most = dict(done), set(dict(done)), most

    def add(self, id_, **values):
        if len(self.found) == self.most:
            raise KeyboardInterrupt
        self.found[id_] = values
        self.done.add(id_)


def chance_rewards(rates):
    """Rewards that depend on the seed of the attempt alone, and seeds that were asked for."""
    asked = []

    def rewards_of(problems, seeds):
        asked.extend(seeds)
        return [
            float(np.random.default_rng(seed).random() < rates[problem.id])
            for problem, seed in zip(problems, seeds, strict=True)
        ]

    return rewards_of, asked


@settings(max_examples=25)
@given(rates=st.lists(st.sampled_from([0.0, 0.01, 0.05, 0.3, 1.0]), min_size=1, max_size=12), batch=st.integers(1, 90))
def test_a_probe_finds_the_class_that_all_attempts_would_show_at_any_batch_size(rates, batch):
    pool = Pool(tasks(len(rates)), frozenset({"t/0"}))
    by_id = {task.id: rate for task, rate in zip(pool.tasks, rates, strict=True)}
    rewards_of, asked = chance_rewards(by_id)
    results = Memory()
    total = probe_tasks(pool, DIFFICULTY, rewards_of, results, seed=3, batch=batch)
    assert total == len(asked) == len(set(asked))
    for task in pool.tasks:
        seeds = [attempt_seed(3, task.id, attempt) for attempt in range(64)]
        every = [float(np.random.default_rng(seed).random() < by_id[task.id]) for seed in seeds]
        record = PassRecord(**results.found[task.id]["record"])
        assert record.kind(DIFFICULTY) == plain_kind(every, DIFFICULTY)
        first = every.index(1.0) + 1 if 1.0 in every else None
        assert record.first_pass == first
        needed = 4 if first is not None and first <= 4 else first or 64
        assert needed <= record.attempts <= max(4, 2 * needed)
        assert results.found[task.id]["verified"] == (task.id != "t/0")


def test_a_probe_that_was_killed_goes_on_to_the_same_result():
    rates = {task.id: rate for task, rate in zip(tasks(9), [0.0, 0.02, 0.5] * 3, strict=True)}
    whole, killed = Memory(), Memory(most=4)
    probe_tasks(Pool(tasks(9)), DIFFICULTY, chance_rewards(rates)[0], whole, seed=0, batch=1)
    with pytest.raises(KeyboardInterrupt):
        probe_tasks(Pool(tasks(9)), DIFFICULTY, chance_rewards(rates)[0], killed, seed=0, batch=1)
    resumed = Memory(killed.found)
    probe_tasks(Pool(tasks(9)), DIFFICULTY, chance_rewards(rates)[0], resumed, seed=0, batch=1)
    assert resumed.found == whole.found


def test_a_result_file_keeps_what_was_whole_and_refuses_other_settings(tmp_path):
    path = tmp_path / "a" / "results.jsonl"
    file = ResultFile(path, {"seed": 1})
    file.add("one", value=1)
    file.add("two", value=2)
    file.close()
    path.write_bytes(path.read_bytes()[:-5])
    again = ResultFile(path, {"seed": 1})
    assert again.done == {"one"}
    again.add("two", value="\u4f60")
    again.close()
    assert read_results(path) == [{"id": "one", "value": 1}, {"id": "two", "value": "\u4f60"}]
    with pytest.raises(RunError, match="other settings"):
        ResultFile(path, {"seed": 2})
    path.write_text('{"asked": {"seed": 1}}\n{"id": \n{"id": "x"}\n')
    with pytest.raises(RunError, match=":2: not a JSON record"):
        read_results(path)


@given(st.data(), st.integers(1, 12), st.integers(1, 9))
def test_a_suite_is_averaged_over_tasks_and_passes_without_bias(data, num_tasks, samples):
    rewards = np.array(
        data.draw(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=samples, max_size=samples),
                           min_size=num_tasks, max_size=num_tasks))
    )  # fmt: skip
    lengths = np.arange(rewards.size).reshape(rewards.shape)
    result = summarize_answers("s", 3, rewards, lengths, lengths < 0, lengths <= 2)
    assert result.avg.mean == pytest.approx(rewards.mean())
    assert result.avg.n == num_tasks
    for k, estimate in result.pass_at.items():
        # Every choice of k answers of a task, by the hypergeometric chance that all of them are wrong.
        wrong = samples - rewards.sum(1)
        all_wrong = np.array([np.prod([(w - i) / (samples - i) for i in range(k)]) for w in wrong])
        assert estimate.mean == pytest.approx(float(np.mean(1 - np.maximum(all_wrong, 0))), abs=1e-12)
        assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    assert sorted(result.pass_at) == list(result.pass_at)
    assert {1, samples} <= set(result.pass_at)
    assert result.short == pytest.approx(min(3, rewards.size) / rewards.size)
    assert SuiteResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_held_out_tasks_that_are_trained_on_are_found_by_id_and_by_question():
    check_apart(tasks(3), tasks(6)[3:], "s")
    for leak in (replace(tasks(1)[0], question="another"), replace(tasks(1)[0], id="another")):
        with pytest.raises(RunError, match="is trained on"):
            check_apart(tasks(3), [leak], "s")


def test_tasks_that_ask_the_same_are_one_task():
    a, b = tasks(2)
    assert distinct([a, b, a, replace(b, id="other"), replace(b, question="other")]) == [a, b]


def answer(text="ok", tokens=10, reward=1.0, reason="stop", repeated=0.0, **more):
    return Answer(text, tokens, reward, reason, repeated, **more)


def single_turn(question, text):
    reply = parse_reply(text)
    said = {"role": "assistant", "content": reply.content, "reasoning_content": reply.reasoning_content}
    return answer(text, messages=[{"role": "user", "content": question}, said])


def test_distillation_keeps_more_of_hard_tasks_and_says_what_it_drops():
    config = DistillConfig(keep_per_task=1, keep_per_hard_task=3, hard_rate=0.5, min_tokens=4, max_repetition=0.4)
    answers = {
        "easy": [answer("a"), answer("b"), answer("c")],
        "hard": [answer("a"), answer("a"), answer("b"), answer("c"), *[answer(str(i), reward=0.0) for i in range(6)]],
        "bad": [answer(tokens=3), answer(repeated=0.5), answer(reason="length")],
    }
    kept, dropped = select(answers, config)
    assert {task: [one.text for one in chosen] for task, chosen in kept.items()} == {
        "easy": ["a"],
        "hard": ["a", "b", "c"],
    }
    assert dropped == {
        "surplus": 2, "low reward": 6, "duplicate": 1, "too short": 1, "repetitive": 1, "cut off": 1,
    }  # fmt: skip
    assert sum(dropped.values()) + sum(map(len, kept.values())) == sum(map(len, answers.values()))


def test_distillation_filters_episodes_by_success_length_and_turns():
    said = [{"role": "assistant", "content": ""}]
    config = DistillConfig(min_reward=0.5, min_parts={"right": 1.0}, max_tokens=20, max_turns=2, keep_per_task=9)
    answers = {
        "t": [
            answer("good", parts={"right": 1.0}, messages=said * 2),
            answer("half", parts={"right": 0.5}),
            answer("none", parts={"style": 1.0}),
            answer("long", tokens=21, parts={"right": 1.0}),
            answer("slow", parts={"right": 1.0}, messages=said * 3),
        ]
    }
    kept, dropped = select(answers, config)
    assert [one.text for one in kept["t"]] == ["good"]
    assert dropped == {"no success": 2, "too long": 1, "too many turns": 1, "surplus": 0}


def test_the_shortest_tasks_are_dropped_when_asked():
    config = DistillConfig(drop_shortest_share=0.5)
    kept, dropped = select({str(n): [answer(tokens=n)] for n in (40, 10, 30, 20)}, config)
    assert set(kept) == {"40", "30"}
    assert dropped["among the shortest"] == 2


def test_repetition_counts_pieces_that_came_before():
    assert repetition(range(30)) == 0.0
    assert repetition([1, 2]) == 0.0
    # 33 pieces of 8 of a sequence of period 2: two are new.
    assert repetition([1, 2] * 20) == pytest.approx(1 - 2 / 33)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base") / "run"
    recipe = Recipe.load([TINY], [f"run.dir={directory}"])
    with open_run(recipe) as run:
        prepare(run)
        train_stages(run)
    return directory


def forked(base, directory, *overrides):
    recipe = Recipe.load([TINY], [f"run.dir={directory}", *overrides])
    assert fork_run(base, recipe)
    return recipe


CURRICULUM = [
    "rl.pool.num_tasks=12",
    "rl.dynamic_sampling.max_factor=2.0",
    'rl.curriculum.stages=[{ difficulty = "any", until = "step", last_step = 2 }, { difficulty = "moderate" }]',
    "rl.length_stages=[{ last_step = 1, max_tokens = 6 }]",
    "rl.dynamic_temperature={ candidates = [1.0, 1.2], num_tasks = 4, plateau = { window = 1, min_rise = 0.5 } }",
    'rl.evaluation={ every_steps = 2, suites = [{ name = "sums", tasks = ["chain_sum"], num_tasks = 4, num_samples = 2 }] }',
    "rl.trajectory_log.every_steps=2",
]


def test_a_run_from_the_model_of_another_has_all_instruments_and_leaves_that_one_alone(base, tmp_path):
    before = sorted((base / "checkpoints").rglob("*"))
    recipe = forked(base, tmp_path / "fork", *CURRICULUM)
    assert not fork_run(base, recipe)
    with open_run(recipe) as run:
        reinforce(run)
    assert [result.step for result in read_evaluations(run.evaluations)] == [0, 2, 4]
    assert {file.name for file in run.shown.iterdir()} == {f"{step:08d}.jsonl" for step in (1, 2, 4)}
    steps = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [step["max_response_tokens"] for step in steps] == [6, 12, 12, 12]
    # 12 tokens never reach a right answer here, so all is dropped and the limit of over-sampling is what is sampled.
    assert all(step["sampled_groups"] == 4 for step in steps if step["teaching_groups"] == 0)
    # Equal rewards are a plateau of window 1 from the second step on.
    assert "held_out_reward_at_1.2" in steps[1]
    assert steps[-1]["curriculum_stage"] == 1
    assert sorted((base / "checkpoints").rglob("*")) == before
    assert main(["rl", "view", str(run.path)]) == 0


def test_a_suite_may_not_ask_what_is_trained_on(base, tmp_path, monkeypatch):
    recipe = forked(base, tmp_path / "fork", *CURRICULUM)
    pool = training_pool(recipe)
    monkeypatch.setattr("glmcore.rl.evaluation.list_tasks", lambda *_: pool.tasks[:3])
    with open_run(recipe) as run, pytest.raises(RunError, match="is trained on"):
        reinforce(run)


def test_the_actions_of_the_command_leave_files_that_the_next_step_reads(base, tmp_path, capsys):
    recipe = forked(base, tmp_path / "fork", "rl.pool.num_tasks=6", "rl.distill.num_tasks=5", "rl.distill.num_samples=2",
                    "rl.distill.min_reward=0.0")  # fmt: skip
    file = tmp_path / "fork" / "recipe.toml"
    assert main(["rl", "probe", str(file)]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert sum(counts.values()) == 6
    with open_run(recipe) as run:
        assert probe(run) == counts
        kept = distill(run)
        assert distill(run) == kept
    lines = [json.loads(line) for line in (run.distilled / "sft.jsonl").read_text().splitlines()]
    assert len(lines) == kept["kept"]
    assert main(["rl", "distill", str(file), "rl.distill.seed=1"]) == 1
    assert "other settings" in capsys.readouterr().err
    assert main(["rl", "view", str(tmp_path / "fork"), "more"]) == 1
    assert main(["rl", "ablate"]) in (1, 2)


def test_distilled_conversations_render_to_the_tokens_that_were_sampled(base):
    tokenizer = Tokenizer.from_pretrained(str(base / "tokenizer"))
    text = "\n<think>2 + 3 = 5</think>\n5"
    line = conversation("a", single_turn("2 + 3 =", text))
    given = apply_chat_template(tokenizer, line["messages"][:1], add_generation_prompt=True).ids.tolist()
    sampled = tokenizer.encode(text, special="parse")
    whole = apply_chat_template(tokenizer, line["messages"]).ids.tolist()
    assert whole[: len(given) + len(sampled)] == given + sampled
    assert "tools" not in line


def test_distilled_data_is_a_source_of_conversations(base, tmp_path):
    lines = [conversation(str(n), single_turn(f"{n} + 1 =", f"<think>{n}</think>\n{n}")) for n in range(12)]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "data.toml").write_text(
        f'[run]\ndir = "{tmp_path}/data"\nnum_threads = 1\n[tokenizer]\npath = "{base}/tokenizer"\n'
        f'[[data.sources]]\nname = "distilled"\nkind = "conversations"\npaths = ["{tmp_path}/sft.jsonl"]\n'
    )
    assert main(["data", "prepare", str(tmp_path / "data.toml")]) == 0
    documents = (tmp_path / "data" / "stations.json").read_text()
    assert "shards" in documents


def test_a_share_of_wrong_answers_is_wrong_and_known_to_be(base):
    recipe = Recipe.load([TINY], [f"run.dir={base}", "rl.pool={ num_tasks = 40, wrong_answer_share = 0.25 }"])
    pool = training_pool(recipe)
    right = training_pool(Recipe.load([TINY], [f"run.dir={base}", "rl.pool.num_tasks=40"]))
    changed = {ours.id for ours, theirs in zip(pool.tasks, right.tasks, strict=True) if ours.answer != theirs.answer}
    assert changed == pool.unverified
    assert len(changed) == 10
    assert all(task.entry["answer"] == task.answer for task in pool.tasks)


def test_a_curriculum_needs_a_pool_and_the_probe_that_it_names(base):
    stages = 'rl.curriculum.stages=[{ difficulty = "any" }]'
    with pytest.raises(ConfigError, match=r"pool\.num_tasks"):
        Recipe.load([TINY], [f"run.dir={base}", stages])
    named = Recipe.load([TINY], [f"run.dir={base}", stages, "rl.pool.num_tasks=4", "rl.curriculum.probe=nowhere.jsonl"])
    with pytest.raises(RunError, match="glmcore rl probe"):
        task_source(named, base / "probe.jsonl")
    with pytest.raises(ConfigError, match="must rise"):
        Recipe.load([TINY], [f"run.dir={base}", "rl.length_stages=[{ last_step = 2, max_tokens = 99 }]"])


def test_the_blocks_of_the_guides_hold(tmp_path, capsys):
    docs = Path(__file__).parents[1] / "docs"
    guide = (docs / "curriculum.md").read_text() + (docs / "viewer.md").read_text()
    settings, source, log = re.findall(r"```toml\n(.*?)```", guide, flags=re.DOTALL)
    (tmp_path / "my.toml").write_text(settings)
    (tmp_path / "log.toml").write_text(log)
    recipe = Recipe.load([RECIPES / "nano.toml", tmp_path / "my.toml", tmp_path / "log.toml"])
    assert [stage.difficulty for stage in recipe.rl.curriculum.stages] == ["moderate", "hard"]
    assert recipe.rl.trajectory_log.groups == 2
    (tmp_path / "source.toml").write_text(source)
    assert (
        DataConfig.from_dict(merge([tmp_path / "source.toml"], [])["data"], "guide").sources[0].kind == "conversations"
    )
    [code] = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    exec(compile(code, "curriculum.md", "exec"), {})
    assert capsys.readouterr().out == "hard 32 21\n"
    commands = [
        line.split("#")[0]
        for block in re.findall(r"```sh\n(.*?)```", guide, flags=re.DOTALL)
        for line in block.splitlines()
    ]
    for command in commands:
        words = command.replace("my.toml", str(tmp_path / "my.toml")).split()[1:]
        if words[:2] != ["rl", "view"]:
            assert main([*words, "--dry-run"]) == 0, command


def test_a_fork_of_a_run_that_is_not_trained_says_so(tmp_path):
    recipe = Recipe.load([TINY], [f"run.dir={tmp_path / 'new'}"])
    with pytest.raises(RunError, match="not finished"):
        fork_run(tmp_path, recipe)
    assert not (tmp_path / "new").exists()
