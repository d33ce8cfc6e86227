"""The command from the outside."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glmcore import train_tokenizer
from glmcore.cli import main

TINY = Path(__file__).parent / "tiny.toml"

NO_TORCH = ("glmcore", "glmcore.tokenizer", "glmcore.chat", "glmcore.packing", "glmcore.trajectory", "glmcore.fp8",
            "glmcore.cli", "glmcore.recipe", "glmcore.data.loader", "glmcore.report")  # fmt: skip


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "glmcore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.mark.parametrize("module", NO_TORCH)
def test_parts_load_without_torch(module):
    check = f"import {module}, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0


def test_help_has_every_verb_with_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for verb in ("quickstart", "data", "train", "rl", "report", "generate", "chat", "quantize", "tokenizer", "info"):
        assert re.search(rf"^ +{verb}\s", text, flags=re.MULTILINE)
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert "examples:" in capsys.readouterr().out


def test_help_is_quick():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor seconds, not wall-clock: torch alone takes over one.
    assert after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime < 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nano", "run.directory=x"], "unknown key 'run.directory'"),
        (["train", "nano", "model.hidden_size=wide"], "model.hidden_size: "),
        (["train", "nano", "train.stages.0.num_tokens=0"], "train.stages.0.num_tokens: "),
        (["train", "nano", "train.stages.9.num_tokens=1"], "is not a position in a list of 6"),
        (["train", "nano", "rl.tasks=['sudoku']"], "not in corpus.problems"),
        (["train", "nowhere.toml"], "no recipe 'nowhere.toml'"),
        (["train", "run.seed=1"], "no recipe given"),
        (["quickstart", "--corpus", "/nowhere", "run.dir={tmp}/run"], "/nowhere holds nothing to read"),
        (["quickstart", "run.dir={tmp}/used"], "is not empty and holds no run"),
        (["rl", "distill", "nano", "run.dir={tmp}/run"], "are not finished: run `glmcore train` first"),
        (["report", "{tmp}"], "is not a run directory"),
        (["generate", "{tmp}", "text"], "cannot read"),
        (["quantize", "{tmp}", "{tmp}/out"], "cannot read"),
        (["tokenizer", "encode", "{tmp}"], "cannot read"),
    ],
)
def test_what_users_get_wrong_is_one_line_and_exit_code_1(tmp_path, capsys, arguments, message):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    status = main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("glmcore: error:")]
    assert status == 1
    assert len(lines) == 1
    assert message in lines[0]
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert all(path.name in ("run", ".lock", "recipe.toml", "stations.json") for path in left)


def test_a_mistake_in_the_corpus_path_can_be_mended_in_the_same_run(tmp_path, capsys):
    settings = ["data", "prepare", str(TINY), f"run.dir={tmp_path}/run"]
    assert main([*settings, "corpus.path=/nowhere"]) == 1
    assert main(settings) == 0
    assert (tmp_path / "run" / "shards" / "sft.tokens").exists()
    capsys.readouterr()


def test_wrong_usage_is_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fly"])
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "quickstart" in capsys.readouterr().err


def test_a_dry_run_prints_the_resolved_recipe_and_does_nothing(tmp_path, capsys):
    assert main(["train", "nano", f"run.dir={tmp_path}/run", "run.seed=7", "--dry-run"]) == 0
    assert "seed = 7" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = run("data", "prepare", "nano", f"run.dir={tmp_path}/run", preexec_fn=limit, env={**os.environ})
    assert done.returncode == 1
    assert "no space left to write" in done.stderr.splitlines()[-1]
    names = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert names == {".lock", "recipe.toml", "stations.json"}


def test_info_is_json(capsys):
    assert main(["info"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"glmcore", "cpu", "cores", "torch"}


@pytest.fixture
def tokenizer(tmp_path):
    tok = train_tokenizer(["some text to learn from, some more text"] * 9, 300, progress=False)
    tok.save(tmp_path / "tokenizer")
    return tok


def test_files_are_encoded_to_lines_json_or_an_array_and_back(tmp_path, tokenizer, capsys):
    place = str(tmp_path / "tokenizer")
    texts = ["some text <|user|>\nmore", "text é\n" * 5]
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    ids = [tokenizer.encode(text) for text in texts]
    names = [str(file) for file in files]

    assert main(["tokenizer", "encode", place, *names]) == 0
    assert capsys.readouterr().out == "".join(" ".join(map(str, line)) + "\n" for line in ids)
    assert main(["tokenizer", "encode", place, *names, "--json", "--special", "parse"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told == [
        {"file": name, "ids": tokenizer.encode(text, "parse")} for name, text in zip(names, texts, strict=True)
    ]
    array = tmp_path / "ids.npy"
    assert main(["tokenizer", "encode", place, *names, "--output", str(array)]) == 0
    assert np.load(array).dtype == np.int32
    assert np.load(array).tolist() == ids[0] + ids[1]
    capsys.readouterr()
    assert main(["tokenizer", "decode", place, str(array)]) == 0
    assert capsys.readouterr().out == "".join(texts)


def test_wrong_files_for_a_tokenizer_are_one_line(tmp_path, tokenizer, capsys):
    place = str(tmp_path / "tokenizer")
    np.save(tmp_path / "wrong.npy", np.zeros((2, 2)))
    (tmp_path / "words.txt").write_text("one two")
    (tmp_path / "bytes.txt").write_bytes(b"abc\xff")
    for arguments, message in (
        (["decode", place, str(tmp_path / "wrong.npy")], "must hold token ids: an array of float64 [2, 2]"),
        (["decode", place, str(tmp_path / "words.txt")], "must hold token ids"),
        (["decode", place, str(tmp_path / "none")], "must hold token ids"),
        (
            ["encode", place, str(tmp_path / "bytes.txt"), "--output", str(tmp_path / "o.npy")],
            "no UTF-8 text at byte 3",
        ),
    ):
        assert main(["tokenizer", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*o.npy*"))


def test_a_long_text_on_stdin_is_encoded(tmp_path, tokenizer):
    text = "some more text\n" * 3000
    done = run("tokenizer", "encode", str(tmp_path / "tokenizer"), input=text)
    assert [int(word) for word in done.stdout.split()] == tokenizer.encode(text)
