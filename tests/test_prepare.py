"""Own data to shards: what goes in comes out once, whoever works, however often it is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from glmcore import Tokenizer
from glmcore.cli import main
from glmcore.data import engines, manifest
from glmcore.data.shards import TokenShards
from glmcore.train.rows import mixture_sources

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def write_jsonl(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def words(seed, count=60):
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("etaoins", k=draw.randint(1, 7))) for _ in range(count))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A recipe for data alone, with two sources of several parts and bad records among them."""
    folder = tmp_path_factory.mktemp("sources")
    rows = [{"text": words(i), "score": i % 10 / 10} for i in range(400)]
    rows[100] = rows[3]
    rows[200:200] = ["{torn", {"text": 7}]
    write_jsonl(folder / "web.jsonl", rows)
    write_jsonl(folder / "more.jsonl", [{"text": words(1_000)}, {"text": words(5)}])
    write_jsonl(folder / "chat.jsonl", [{"messages": [*CHAT, *CHAT[:1]]}] + [{"messages": CHAT}] * 2)
    (folder / "data.toml").write_text(
        f"""
[run]
dir = "unset"
num_threads = 2
[tokenizer]
vocab_size = 400
training_bytes = 40_000
[data]
part_bytes = 20_000
[[data.sources]]
name = "web"
paths = ["{folder}/web.jsonl", "{folder}/more.jsonl"]
fields = {{ quality = "score" }}
buckets = [
  {{ name = "low", min_quality = -1.0, epochs = 0.0 }},
  {{ name = "middle", min_quality = 0.3, epochs = 1.0 }},
  {{ name = "top", min_quality = 0.8, epochs = 3.0 }},
]
[[data.sources]]
name = "chat"
kind = "conversations"
cleaning = {{ exact_duplicates = "keep" }}
paths = ["{folder}/chat.jsonl"]
"""
    )
    return folder


def prepare(sources, directory, *settings):
    return main(["data", "prepare", str(sources / "data.toml"), f"run.dir={directory}", *settings])


def outcome(directory) -> dict[str, bytes]:
    """All that preparation promises to be the same."""
    files = [*directory.glob("shards/*"), *directory.glob("rejects/*"), *directory.glob("tokenizer/*")]
    assert not [file for file in directory.rglob(".*") if file.name != ".lock"]
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def prepared(sources, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "whole"
    assert prepare(sources, directory) == 0
    return directory


def test_every_record_is_a_document_or_accounted_for(sources, prepared):
    told = {source["name"]: source for source in manifest.read(prepared / "shards")["sources"]}
    web, chat = told["web"], told["chat"]
    assert web["records"] == 404
    assert web["rejected"] == {"invalid_json": 1, "wrong_type": 1}
    assert web["dropped"] == {"exact_duplicate": 2, "quality": 119}
    assert web["parts"] > 5
    assert (chat["records"], chat["documents"], chat["rejected"]) == (3, 2, {"bad_conversation": 1})
    rejects = [json.loads(line) for file in sorted((prepared / "rejects").iterdir())
               for line in file.read_text().splitlines()]  # fmt: skip
    content = (sources / "web.jsonl").read_bytes()
    torn = [content[int(r["place"].split()[1]) :].split(b"\n")[0] for r in rejects if "web" in r["file"]]
    assert torn == [b"{torn", b'{"text": 7}']


def top_documents(directory):
    """Texts and qualities of the best bucket."""
    tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")
    groups = manifest.groups(directory / "shards", manifest.read(directory / "shards"), "web")
    shards = TokenShards.open(next(group.files for group in groups if group.bucket == "top"))
    end = tokenizer.token_to_id("<|endoftext|>")
    assert all(ids[-1] == end for ids in shards)
    assert {shards.source(i) for i in range(len(shards))} == {1}
    return [(tokenizer.decode(ids[:-1].astype(np.int32)), shards.quality(i)) for i, ids in enumerate(shards)]


def test_the_shards_hold_the_documents_with_source_and_quality(sources, prepared, tmp_path):
    rows = [json.loads(line) for line in (sources / "web.jsonl").read_text().splitlines() if "torn" not in line]
    rows = [row for row in rows if row["text"] != 7]
    expected = [(row["text"], np.float32(row["score"])) for row in rows if row["score"] >= 0.8]
    expected.append((words(1_000), np.float32(1.0)))  # the second file has no scores: its new document has quality 1
    shuffled = top_documents(prepared)
    assert sorted(shuffled) == sorted(expected)
    assert shuffled != expected
    assert expected[-1] in shuffled[-20:]  # a document stays in its part
    assert prepare(sources, tmp_path / "run", "data.sources.0.shuffle=false") == 0
    assert top_documents(tmp_path / "run") == expected
    assert prepare(sources, tmp_path / "other", "run.seed=1") == 0
    assert sorted(other := top_documents(tmp_path / "other")) == sorted(expected)
    assert other not in (shuffled, expected)


def test_what_is_learned_of_a_conversation_is_what_the_assistant_says(prepared):
    tokenizer = Tokenizer.from_pretrained(prepared / "tokenizer")
    [chat] = manifest.groups(prepared / "shards", manifest.read(prepared / "shards"), "chat")
    shards = TokenShards.open(chat.files)
    assert "hello" in tokenizer.decode(shards[1].astype(np.int32)[shards.loss_mask(1) == 1])
    assert "\nhi" not in tokenizer.decode(shards[1].astype(np.int32)[shards.loss_mask(1) == 1])


def test_buckets_are_drawn_as_often_as_they_ask(prepared):
    class Run:
        shards = prepared / "shards"

    drawn = mixture_sources(Run(), {"web": 2.0, "chat": 1.0})
    assert [source.name for source in drawn] == ["web.middle", "web.top", "chat"]
    epochs = [source.weight / source.shards.num_tokens for source in drawn[:2]]
    assert epochs[1] / epochs[0] == pytest.approx(3.0)
    assert sum(source.weight for source in drawn) == pytest.approx(3.0)


def test_buckets_by_quantile_hold_shares_of_the_whole_source(sources, prepared, tmp_path, capsys):
    told = (
        "[{name='low', min_quantile=0.0, epochs=0.0}, {name='middle', min_quantile=0.5, epochs=1.0},"
        "{name='top', min_quantile=0.9, epochs=3.0}]"
    )
    assert prepare(sources, tmp_path / "run", f"data.sources.0.buckets={told}") == 0
    [web, _] = manifest.read(tmp_path / "run" / "shards")["sources"]
    # 399 different scored texts, ten scores, 39 of the lowest, and one text without a score, which has quality 1.
    assert [bucket["min_quality"] for bucket in web["buckets"]] == [0.0, 0.5, 0.9]
    assert web["dropped"] == {"exact_duplicate": 2, "quality": 199}
    documents = {name: sum(shard["documents"] for shard in web["shards"] if shard["bucket"] == name)
                 for name in ("middle", "top")}  # fmt: skip
    assert documents == {"middle": 160, "top": 41}
    assert web["parts"] > 5
    rows = [{"text": words(f"late {i}"), "score": 5.0} for i in range(400)]
    write_jsonl(tmp_path / "late.jsonl", rows)
    paths = [str(sources / "web.jsonl"), str(tmp_path / "late.jsonl")]
    settings = (f"data.sources.0.buckets={told.replace('0.9', '0.6')}", f"data.sources.0.paths={json.dumps(paths)}")
    assert prepare(sources, tmp_path / "more", *settings) == 0
    [web, _] = manifest.read(tmp_path / "more" / "shards")["sources"]
    # Half of all are of the best quality: both cuts fall there, and the better of the two buckets takes them.
    assert [bucket["min_quality"] for bucket in web["buckets"]] == [0.0, 5.0, 5.0]
    assert {shard["bucket"] for shard in web["shards"]} == {"top"}
    mixed = "[{name='low', min_quality=0.0, epochs=0.0}, {name='top', min_quantile=0.9, epochs=3.0}]"
    for wrong, message in ((mixed, "mix min_quality and min_quantile"), ("[{name='a', epochs=1.0}]", "needs either")):
        assert prepare(sources, tmp_path / "wrong", f"data.sources.0.buckets={wrong}") == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(sources, prepared, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(engines, "BYTES_PER_WORKER", 1)
    assert prepare(sources, tmp_path / "run", f"run.num_threads={workers}") == 0
    assert outcome(tmp_path / "run") == outcome(prepared)


KILLED = """
import sys
from glmcore.data import engines
from glmcore.cli import main
if __name__ == "__main__":
    engines.BYTES_PER_WORKER = 20_000
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_it_ends_with_the_same_files(sources, prepared, tmp_path, seed):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, script, "data", "prepare", sources / "data.toml", f"run.dir={tmp_path}/run"]
    draw = random.Random(seed)
    kills = 0
    while kills < 8:
        process = subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL, start_new_session=True)
        enough = _num_files(tmp_path / "run") + draw.randint(1, 8)
        while process.poll() is None and _num_files(tmp_path / "run") < enough:
            time.sleep(0.002)
        time.sleep(draw.uniform(0.0, 0.05))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills > 0
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert outcome(tmp_path / "run") == outcome(prepared)


def _num_files(run: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(run))


def test_workers_end_with_a_killed_parent(sources, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), "data", "prepare", str(sources / "data.toml"), f"run.dir={tmp_path}/run"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers: set[int] = set()
    while not workers and process.poll() is None:
        found = {int(child) for child in children.read_text().split()} if children.exists() else set()
        workers = {pid for pid in found if b"spawn_main" in _command(pid)}
    process.kill()
    process.wait()
    assert workers
    deadline = time.monotonic() + 20
    while any(b"spawn_main" in _command(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.02)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_ctrl_c_ends_all_and_the_next_call_goes_on(sources, prepared, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), "data", "prepare", str(sources / "data.toml"), f"run.dir={tmp_path}/run"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list((tmp_path / "run").glob("parts/*.read.json")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "repeat the same command" in said
    assert prepare(sources, tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == outcome(prepared)


def test_a_changed_file_is_told_and_only_its_parts_are_read_again(sources, prepared, tmp_path, capsys):
    settings = (f"data.sources.0.paths=['{tmp_path}/a.jsonl', '{tmp_path}/b.jsonl']", "data.sources.0.buckets=[]")
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": words(f"{name}{i}")} for i in range(60)])
    assert prepare(sources, tmp_path / "run", *settings) == 0
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run" / "corpus").iterdir()}
    capsys.readouterr()
    assert prepare(sources, tmp_path / "run", *settings) == 0
    assert "no source has changed" in capsys.readouterr().err
    write_jsonl(tmp_path / "b.jsonl", [{"text": words(f"c{i}")} for i in range(60)])
    assert prepare(sources, tmp_path / "run", *settings) == 0
    assert "b.jsonl has changed since it was read" in capsys.readouterr().err
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run" / "corpus").iterdir()}
    same = {name for name in before if before[name] == after.get(name)}
    assert {"chat.jsonl", "web-00000.jsonl"} <= same < before.keys()
    assert prepare(sources, tmp_path / "fresh", *settings) == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "fresh")
    (tmp_path / "run" / "checkpoints").mkdir()
    write_jsonl(tmp_path / "b.jsonl", [{"text": words(1)}])
    assert prepare(sources, tmp_path / "run", *settings) == 1
    assert "b.jsonl changed since" in capsys.readouterr().err


def test_sources_are_added_and_changed_and_what_was_read_stays(sources, prepared, tmp_path, capsys):
    write_jsonl(tmp_path / "new.jsonl", [{"text": words(f"new {i}")} for i in range(40)])
    recipe = tmp_path / "data.toml"
    added = f'[[data.sources]]\nname = "new"\npaths = ["{tmp_path}/new.jsonl"]\n'
    recipe.write_text((sources / "data.toml").read_text() + added)
    run = tmp_path / "run"
    taken = f"tokenizer.path='{prepared}/tokenizer'"
    assert prepare(sources, run, taken) == 0
    before = {
        file.name: file.stat().st_mtime_ns for folder in ("corpus", "shards") for file in (run / folder).iterdir()
    }
    more = ["data", "prepare", str(recipe), taken]
    assert main([*more, f"run.dir={run}"]) == 0
    after = {file.name: file.stat().st_mtime_ns for folder in ("corpus", "shards") for file in (run / folder).iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert after.keys() - before.keys() == {"new.jsonl", "new.tokens"}
    assert main([*more, f"run.dir={tmp_path}/fresh"]) == 0
    assert outcome(run) == outcome(tmp_path / "fresh")
    assert main([*more, f"run.dir={run}", "data.sources.0.shuffle=false", "data.sources.2.sample=0.5"]) == 0
    assert [source["name"] for source in manifest.read(run / "shards")["sources"]] == ["web", "chat", "new"]
    assert prepare(sources, run, taken) == 0
    assert not (run / "shards" / "new.tokens").exists()
    capsys.readouterr()
    assert main([*more, f"run.dir={run}", "run.seed=1"]) == 1
    assert "begun with another run.seed" in capsys.readouterr().err
    (run / "checkpoints").mkdir()
    assert main([*more, f"run.dir={run}"]) == 1
    assert "begun with another data.sources" in capsys.readouterr().err


def test_sample_and_limit_take_part_of_a_source(sources, tmp_path):
    half = ("data.sources.0.sample=0.5", "data.sources.0.buckets=[]")
    assert prepare(sources, tmp_path / "half", *half) == 0
    [web, _] = manifest.read(tmp_path / "half" / "shards")["sources"]
    assert 140 < web["documents"] < 260
    assert web["records"] == 404
    assert prepare(sources, tmp_path / "some", *half, "data.sources.0.max_documents=30") == 0
    [web, _] = manifest.read(tmp_path / "some" / "shards")["sources"]
    assert web["documents"] == 30
    assert web["records"] == 404


def test_a_tokenizer_can_be_taken_instead_of_trained(sources, prepared, tmp_path):
    assert prepare(sources, tmp_path / "run", f"tokenizer.path='{prepared}/tokenizer'") == 0
    ours, theirs = outcome(tmp_path / "run"), outcome(prepared)
    assert {k: v for k, v in ours.items() if "shards" in k} == {k: v for k, v in theirs.items() if "shards" in k}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.sources.0.name='prose'", "is one of the built-in corpus"),
        ("data.sources.0.name='chat'", "sources have the same name"),
        ("data.sources.0.paths=['/nowhere']", "/nowhere holds nothing to read"),
        ("data.sources.0.fields.text='body'", "source 'web' is empty"),
        ("data.on_bad_record='stop'", "invalid_json"),
        ("data.sources.1.format='lines'", "conversations cannot be read from lines"),
    ],
)
def test_mistakes_are_one_line(sources, tmp_path, capsys, setting, message):
    assert prepare(sources, tmp_path / "run", setting) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("glmcore: error:")]
    assert message in line


def test_ray_writes_the_same_shards(sources, prepared, tmp_path):
    pytest.importorskip("ray")
    script = "import ray, sys; from glmcore.cli import main\nray.init(num_cpus=2, include_dashboard=False, "
    script += "log_to_driver=False)\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "data", "prepare", str(sources / "data.toml")]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [*command, f"run.dir={tmp_path}/run", "--engine", "ray"],
        capture_output=True, text=True, check=False, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert outcome(tmp_path / "run") == outcome(prepared)
