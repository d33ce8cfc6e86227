"""The command from the outside."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from glmcore.cli import main

TINY = Path(__file__).parent / "tiny.toml"

NO_TORCH = ("glmcore", "glmcore.tokenizer", "glmcore.chat", "glmcore.packing", "glmcore.trajectory", "glmcore.fp8",
            "glmcore.cli", "glmcore.recipe", "glmcore.data.loader", "glmcore.report")  # fmt: skip


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "glmcore.cli", *arguments]
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
        (["train", "nano", "train.stages.0.num_steps=0"], "train.stages.0.num_steps: "),
        (["train", "nano", "train.stages.9.num_steps=1"], "is not a position in a list of 4"),
        (["train", "nano", "rl.tasks=['sudoku']"], "not in corpus.problems"),
        (["train", "nowhere.toml"], "no recipe 'nowhere.toml'"),
        (["train", "run.seed=1"], "no recipe given"),
        (["quickstart", "--corpus", "/nowhere", "run.dir={tmp}/run"], "/nowhere does not exist"),
        (["quickstart", "run.dir={tmp}/used"], "is not empty and holds no run"),
        (["rl", "nano", "run.dir={tmp}/run"], "are not finished: run `glmcore train` first"),
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
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {".lock", "recipe.toml", "stations.json"}


def test_info_is_json(capsys):
    assert main(["info"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"glmcore", "cpu", "cores", "torch"}
