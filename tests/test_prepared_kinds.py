"""Every kind of source through the command, cleaned, and looked at afterwards."""

import json
import random
import subprocess
from pathlib import Path

import pytest

from glmcore.cli import main
from glmcore.data import manifest

ROOT = Path(__file__).parents[1]
NAMES = [
    "Ada",
    "Ben",
    "Cai",
    "Dora",
    "Emil",
    "Fay",
    "Gus",
    "Hana",
    "Ivo",
    "June",
    "Kim",
    "Lou",
    "Mia",
    "Nils",
    "Olga",
    "Pia",
]


FORMS = [
    "{a} walks to the {x} because {b} forgot a {y} there.",
    "Nobody in the {x} knew why {a} had sold the old {y}.",
    "After {n} days of rain, {a} and {b} opened every {x} of the town.",
    "{b} asked about the {y}, but {a} only spoke of {n} lost {x}s.",
    "Was it {a} who painted this {x} so carefully, or was it {b}?",
    "They say that a {y} is worth {n} coins when the {x} closes early.",
    "In spring {a} writes long letters to {b}, mostly concerning some {x}.",
    "What {b} remembers best is how the {y} looked behind that {x}.",
    "Of all {n} visitors, {a} alone came back with another {y}.",
]
THINGS = [
    "river",
    "house",
    "garden",
    "letter",
    "window",
    "market",
    "bridge",
    "story",
    "kitchen",
    "library",
    "harbour",
    "teapot",
    "ladder",
    "pigeon",
    "mirror",
    "engine",
    "island",
    "violin",
    "candle",
    "orchard",
    "blanket",
    "compass",
    "station",
    "theatre",
    "cellar",
    "basket",
    "lantern",
    "statue",
    "painting",
    "wagon",
]


def prose(seed, sentences=14):
    """English that the published filters let pass."""
    draw = random.Random(seed)
    lines: list[str] = []
    for _ in range(sentences):
        (a, b), (x, y) = draw.sample(NAMES, 2), draw.sample(THINGS, 2)
        lines.append(draw.choice(FORMS).format(a=a, b=b, x=x, y=y, n=draw.randint(2, 999)))
    return "\n".join(lines)


def prepare(tmp_path, sources, *settings, run="run", **data):
    """Prepared data of sources that are given as JSON."""
    file = tmp_path / "recipe.toml"
    file.write_text('[run]\ndir = "unset"\nnum_threads = 1\n[tokenizer]\nvocab_size = 400\ntraining_bytes = 50_000\n')
    values = [f"data.{key}={json.dumps(value)}" for key, value in data.items()]
    listed = "[" + ", ".join(_toml(source) for source in sources) + "]"
    command = ["data", "prepare", str(file), f"run.dir={tmp_path}/{run}", f"data.sources={listed}", *values, *settings]
    assert main(command) == 0
    return {source["name"]: source for source in manifest.read(tmp_path / run / "shards")["sources"]}


def _toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(_toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def inspect(capsys, *arguments):
    capsys.readouterr()
    assert main(["data", "inspect", *map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_cleaning_leaves_out_what_it_is_asked_to_and_says_why(tmp_path, capsys):
    texts = [prose(i) for i in range(30)]
    near = texts[10].replace(" the ", " that ", 1)
    german = "Das ist ein langer deutscher Text \u00fcber die Stadt und ihre Menschen, die dort wohnen. " * 12
    question = "How many apples does the farmer have left after selling half of all that he picked on Monday morning?"
    rows = [*texts, near, texts[12] + " \n", german, "too short", prose(99) + "\n" + question]
    write_jsonl(tmp_path / "web.jsonl", [{"text": text} for text in rows])
    write_jsonl(tmp_path / "evaluation.jsonl", [{"question": question, "answer": "7"}])
    cleaning = {
        "rules": "web",
        "thresholds": {"gopher_num_stop_words": "off", "gopher_num_words": {"minimum": 40}},
        "languages": ["eng"],
        "near_duplicates": 0.8,
        "quality": "statistics",
        "evaluations": [f"{tmp_path}/evaluation.jsonl"],
    }
    web = prepare(tmp_path, [{"name": "web", "paths": [f"{tmp_path}/web.jsonl"], "cleaning": cleaning}])["web"]
    assert web["records"] == 35
    assert web["documents"] >= 25
    left_out = web["dropped"]
    assert (left_out["exact_duplicate"], left_out["near_duplicate"], left_out["contaminated"]) == (1, 1, 1)
    assert left_out["language"] >= 1
    [file] = (tmp_path / "run" / "rejects").iterdir()
    told = {reject["reason"]: reject for reject in map(json.loads, file.read_text().splitlines())}
    assert told["contaminated"]["sample"].startswith(prose(99)[:50])
    assert any("too short" in reject["sample"] for reject in told.values())
    assert all(0 < document["quality"] <= 1 for document in inspect(capsys, tmp_path / "run", "--show", 9))


ENCODER = """
import numpy as np

WORDS = {"dog": 0, "hound": 0, "runs": 1, "races": 1, "sleeps": 2, "cat": 3, "eats": 4}

def encode(texts):
    rows = np.zeros((len(texts), 5))
    for row, text in zip(rows, texts):
        for word in text.split():
            if word in WORDS:
                row[WORDS[word]] += 1
    return rows

def wrong(texts):
    return np.zeros((len(texts) + 1, 5))
"""


def test_copies_in_meaning_are_dropped_by_a_named_encoder(tmp_path, monkeypatch, capsys):
    module = tmp_path / "my_encoder_of_words.py"
    module.write_text(ENCODER)
    monkeypatch.syspath_prepend(tmp_path)
    texts = [("a dog runs", 0.2), ("the hound races", 0.9), ("a dog sleeps", 0.5), ("the cat eats", 0.5)]
    write_jsonl(tmp_path / "a.jsonl", [{"text": text, "q": quality} for text, quality in texts])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "some cat eats", "q": 0.4}, {"text": "of nothing we know", "q": 0.1}])
    rule = {"semantic_duplicates": {"encoder": "my_encoder_of_words:encode", "num_clusters": 1, "threshold": 0.9}}
    sources = [
        {"name": name, "paths": [f"{tmp_path}/{name}.jsonl"], "fields": {"quality": "q"}, "cleaning": rule}
        for name in "ab"
    ]
    (tmp_path / "c.txt").write_text("\n".join(map(prose, range(20))))  # for the tokenizer to learn from
    sources.append({"name": "c", "paths": [f"{tmp_path}/c.txt"]})
    told = prepare(tmp_path, sources, part_bytes=40)
    assert told["a"]["parts"] > 1
    assert [told[name]["dropped"] for name in "ab"] == [{"semantic_duplicate": 1}] * 2
    shown = inspect(capsys, tmp_path / "run", "--source", "a", "--show", 9)
    left = {text.removesuffix("<|endoftext|>") for document in shown for _, text in _segments(document)}
    assert left == {"the hound races", "a dog sleeps", "the cat eats"}
    before = (tmp_path / "run" / "parts" / "b-00000.read.json").read_bytes()
    module.write_text(ENCODER + "\n")
    prepare(tmp_path, sources, part_bytes=40)
    assert (tmp_path / "run" / "parts" / "b-00000.read.json").read_bytes() != before, (
        "another encoder, the same embeddings"
    )
    for encoder, message in (
        ("no_such_module:encode", "no module 'no_such_module'"),
        ("my_encoder_of_words:other", "has no function 'other'"),
        ("my_encoder_of_words:wrong", "not a row of floats for each"),
    ):
        rule["semantic_duplicates"]["encoder"] = encoder
        with pytest.raises(AssertionError):
            prepare(tmp_path, sources, run="wrong")
        assert message in capsys.readouterr().err


def test_evaluation_texts_that_change_are_looked_for_again(tmp_path):
    write_jsonl(tmp_path / "web.jsonl", [{"text": prose(i)} for i in range(9)])
    write_jsonl(tmp_path / "evaluation.jsonl", [{"question": "one two three"}])
    source = {"name": "web", "paths": [f"{tmp_path}/web.jsonl"]}
    source["cleaning"] = {"evaluations": [f"{tmp_path}/evaluation.jsonl"]}
    assert prepare(tmp_path, [source])["web"]["documents"] == 9
    write_jsonl(tmp_path / "evaluation.jsonl", [{"question": prose(5)}])
    assert prepare(tmp_path, [source])["web"]["dropped"] == {"contaminated": 1}


def test_problems_conversations_and_repositories_become_documents(tmp_path, capsys):
    repository = tmp_path / "repository"
    (repository / "pkg").mkdir(parents=True)
    (repository / "pkg" / "__init__.py").write_text("")
    (repository / "pkg" / "a.py").write_text("from pkg.z import zed\n\nprint(zed)\n")
    (repository / "pkg" / "z.py").write_text("zed = 26\n")
    git = ["git", "-C", str(repository), "-c", "user.name=n", "-c", "user.email=n@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "Add the last letter of all"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "main.c").write_text("int main(void) { return 0; }\n")
    write_jsonl(
        tmp_path / "problems.jsonl",
        [{"question": f"What is {i} + 1?", "solution": str(i + 1), "reasoning": "count on", "answer": str(i + 1)}
         for i in range(20)]
        + [{"question": "What is 1 + 1?", "solution": "3", "answer": "2"}],
    )  # fmt: skip
    call = {"id": "c", "type": "function", "function": {"name": "ls", "arguments": "{}"}}
    agent = [
        {"role": "user", "content": "List."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "a.py"},
        {"role": "assistant", "content": "There is a.py."},
    ]
    write_jsonl(tmp_path / "agent.jsonl", [{"messages": agent}])
    told = prepare(
        tmp_path,
        [
            {"name": "repos", "kind": "repositories", "paths": [str(repository), str(plain)]},
            {"name": "solved", "kind": "problems", "paths": [f"{tmp_path}/problems.jsonl"]},
            {"name": "tasks", "kind": "problems", "problems": {"tasks": {"chain_sum": 12}}},
            {"name": "agent", "kind": "conversations", "paths": [f"{tmp_path}/agent.jsonl"]},
        ],
    )
    assert told["repos"]["documents"] == 3
    assert told["solved"]["documents"] + told["solved"]["dropped"]["problem_left_out"] == 21
    assert told["tasks"]["documents"] == 12
    text = "".join(text for d in inspect(capsys, tmp_path / "run", "--source", "repos") for _, text in _segments(d))
    assert text.index("zed = 26") < text.index("from pkg.z import zed")
    assert "Add the last letter of all" in text
    assert "int main" in text
    [shown] = inspect(capsys, tmp_path / "run" / "shards" / "agent.tokens")
    learned = "".join(text for is_learned, text in _segments(shown) if is_learned)
    assert "<tool_call>ls" in learned
    assert "There is a.py." in learned
    assert "List." not in learned
    assert "<tool_response>" not in learned
    assert 0 < shown["num_learned"] < shown["num_tokens"]


def test_issues_and_pull_requests_of_a_file_become_documents(tmp_path, capsys):
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "a.py").write_text("def f():\n    return 1\n")
    git = ["git", "-C", str(repository), "-c", "user.name=n", "-c", "user.email=n@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "Add f"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    sha = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    place = "https://api.github.com/repos/o/r/issues/3"
    issue = {"url": place, "number": 3, "title": "Wrong", "body": "It returns one. " * 20, "user": {"login": "a"}}
    patch = "@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 2"
    pull = {
        "url": place.replace("issues/3", "pulls/4"),
        "number": 4,
        "title": "Right",
        "body": "Fixes #3",
        "user": {"login": "b"},
    }
    pull |= {
        "base": {"sha": sha},
        "merged_at": "2024",
        "files": [{"filename": "a.py", "status": "modified", "patch": patch}],
    }
    filler = [{"issue_url": place, "body": f"comment {at}", "user": {"login": "c"}, "id": at} for at in range(40)]
    write_jsonl(tmp_path / "github.jsonl", [issue, *filler, pull, {"other": 1}])
    source = {"name": "talk", "kind": "discussions", "paths": [f"{tmp_path}/github.jsonl"]}
    source["discussions"] = {"checkouts": {"o/r": str(repository)}}
    told = prepare(tmp_path, [source], part_bytes=1_000)["talk"]
    assert (told["documents"], told["dropped"]) == (1, {"discussion_left_out": 1})
    [shown] = inspect(capsys, tmp_path / "run", "--source", "talk")
    [(is_learned, text)] = _segments(shown)
    assert is_learned
    assert "comment 39" in text
    assert text.index("# issue 3") < text.index("# file: a.py\ndef f():\n    return 1\n") < text.index("+    return 2")


def test_rules_of_commits_discussions_and_conversations_are_the_recipes(tmp_path):
    repository = tmp_path / "repository"
    repository.mkdir()
    git = ["git", "-C", str(repository), "-c", "user.name=n", "-c", "user.email=n@example.org"]
    subprocess.run([*git, "init", "-q"], check=True, capture_output=True)
    for number, message in enumerate(("Add the first file of all", "Short one", "Add many lines to a file of many")):
        (repository / f"{number}.py").write_text("x = 1\n" * (1 + 20 * (number == 2)))
        subprocess.run([*git, "add", "."], check=True, capture_output=True)
        subprocess.run([*git, "commit", "-qm", message], check=True, capture_output=True)
    place = "https://api.github.com/repos/o/r/issues/"
    write_jsonl(
        tmp_path / "issues.jsonl",
        [{"url": f"{place}{n}", "number": n, "title": "T", "body": "word " * (10 * n), "user": {"login": "a"}}
         for n in (1, 3, 9)],
    )  # fmt: skip
    turn = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "word"}]
    write_jsonl(tmp_path / "chat.jsonl", [{"messages": turn}, {"messages": turn * 2}, {"messages": turn * 40}])
    log = [{"type": m["role"], "uuid": str(i), "message": m} for i, m in enumerate(turn)]
    log[1]["parentUuid"] = "0"
    columns = [("a", 0.0), ("b", 0.0), ("a", 60.0)]
    rows = [
        {"task_id": i, "model_name": m, "failure_rate": rate, "trajectory": log} for i, (m, rate) in enumerate(columns)
    ]
    write_jsonl(tmp_path / "bench.jsonl", rows)
    (tmp_path / "c.txt").write_text("\n".join(map(prose, range(20))))  # for the tokenizer to learn from
    sources = [
        {"name": "repos", "kind": "repositories", "paths": [str(repository)]},
        {"name": "talk", "kind": "discussions", "paths": [f"{tmp_path}/issues.jsonl"]},
        {"name": "chat", "kind": "conversations", "paths": [f"{tmp_path}/chat.jsonl"]},
        {"name": "bench", "kind": "conversations", "layout": "cc-bench", "paths": [f"{tmp_path}/bench.jsonl"]},
        {"name": "c", "paths": [f"{tmp_path}/c.txt"]},
    ]
    for source in sources[2:4]:
        source["cleaning"] = {"exact_duplicates": "keep"}
    usual = prepare(tmp_path, sources)
    assert [usual[source["name"]]["documents"] for source in sources[1:4]] == [1, 3, 3]
    assert "commit_left_out" not in usual["repos"]["dropped"]
    sources[0]["repositories"] = {"min_message_chars": 12, "max_changed_lines": 5}
    sources[1]["discussions"] = {"min_chars": 100, "max_single_chars": 300}
    sources[2]["conversations"] = {"min_assistant_messages": 2, "max_chars": 2_000}
    sources[3]["conversations"] = {"models": ["a"], "max_failure_rate": 50.0}
    ours = prepare(tmp_path, sources, run="ours")
    assert ours["repos"]["dropped"]["commit_left_out"] == 2
    assert [ours[source["name"]]["documents"] for source in sources[1:4]] == [1, 1, 1]
    assert ours["talk"]["tokens"] < usual["talk"]["tokens"]  # the middle one in place of the long one


def _segments(shown):
    return [(segment["learned"], segment["text"]) for segment in shown["segments"]]


def test_source_code_is_learned_with_its_middle_asked_for(tmp_path, capsys):
    for name in "abcdefgh":
        (tmp_path / f"{name}.py").write_text(f"def {name}():\n    return {prose(name)!r}\n")
    source = {"name": "py", "paths": [f"{tmp_path}/*.py"], "fill_in_the_middle": {"rate": 0.5, "span": "lines"}}
    assert prepare(tmp_path, [source])["py"]["documents"] == 8
    texts = [_segments(d)[0][1] for d in inspect(capsys, tmp_path / "run", "--show", 8)]
    asked = [text for text in texts if "<|code_middle|>" in text]
    assert 0 < len(asked) < 8
    assert all(text.count("<|code_prefix|>") == text.count("<|code_suffix|>") == 1 for text in asked)


def test_what_was_prepared_is_told_and_damage_is_found(tmp_path, capsys):
    write_jsonl(tmp_path / "web.jsonl", [{"text": prose(i)} for i in range(20)] + [{"txt": "x"}])
    prepare(tmp_path, [{"name": "web", "paths": [f"{tmp_path}/web.jsonl"], "shuffle": False}])
    capsys.readouterr()
    run = tmp_path / "run"
    assert main(["data", "stats", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    [web] = told["sources"]
    assert web["rejected"] == {"missing_field": 1}
    assert web["lengths"]["p0"] <= web["lengths"]["p50"] <= web["lengths"]["p100"]
    assert web["lengths"]["mean"] * web["documents"] == pytest.approx(web["tokens"])
    assert web["tokens_per_byte"] == pytest.approx(web["tokens"] / sum(len(prose(i)) for i in range(20)))
    assert main(["data", "stats", str(run)]) == 0
    table = capsys.readouterr().out
    assert "missing_field" in table
    assert f"{web['tokens']:,}" in table
    assert main(["data", "inspect", str(run), "--verify", "--show", "1", "--max-chars", "40"]) == 0
    output = capsys.readouterr()
    assert "1 shards are what was written" in output.err
    assert output.out.startswith("== web.tokens, document 0: source web, quality 1")
    assert f"{prose(0)[:30]}" in output.out
    assert "more characters" in output.out
    assert main(["data", "inspect", str(run), "--source", "wob"]) == 1
    assert "no source 'wob', but web" in capsys.readouterr().err
    shard = run / "shards" / "web.tokens"
    content = bytearray(shard.read_bytes())
    content[300] ^= 1
    shard.write_bytes(content)
    assert main(["data", "inspect", str(run), "--verify"]) == 1
    assert "web.tokens" in capsys.readouterr().err


def test_a_whole_recipe_goes_on_with_data_that_was_prepared_alone(tmp_path, capsys):
    tiny = Path(__file__).parent / "tiny.toml"
    data = (tiny.read_text()).split("[model]")[0]
    (tmp_path / "data.toml").write_text(data)
    run = f"run.dir={tmp_path}/run"
    assert main(["data", "prepare", str(tmp_path / "data.toml"), run]) == 0
    before = (tmp_path / "run" / "shards" / "sft.tokens").stat().st_mtime_ns
    assert main(["train", str(tiny), run, "run.seed=1"]) == 1
    assert "begun with another run.seed" in capsys.readouterr().err
    assert main(["train", str(tiny), run]) == 0
    assert (tmp_path / "run" / "shards" / "sft.tokens").stat().st_mtime_ns == before
    assert main(["data", "prepare", str(tmp_path / "data.toml"), run]) == 0
    assert "no source has changed" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "data.toml"), run]) == 1
    assert "missing key 'model'" in capsys.readouterr().err
