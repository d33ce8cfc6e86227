"""The whole road with a model of a few thousand parameters: it arrives, and no interruption changes where."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from glmcore import LLM, SamplingParams
from glmcore.cli import main
from glmcore.recipe import Recipe

TINY = Path(__file__).parent / "tiny.toml"
pytestmark = pytest.mark.e2e


def quickstart(directory: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "glmcore.cli", "quickstart", str(TINY), f"run.dir={directory}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("runs") / "whole"
    return directory, finish(quickstart(directory))


def weights(directory: Path) -> dict[str, bytes]:
    files = ["export/bf16/model.safetensors", "export/fp8/model.safetensors", "export/bf16/tokenizer.json"]
    last = sorted((directory / "checkpoints").iterdir())[-1]
    return {
        **{file: (directory / file).read_bytes() for file in files},
        **{name: (last / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")},
    }


def test_the_road_arrives_and_says_so(finished):
    directory, output = finished
    assert "mean reward on held-out problems before RL: " in output
    assert "mean reward on held-out problems after RL: " in output
    assert "the 95% intervals" in output
    assert output.count("\nA (") == 3
    assert {path.name for path in directory.iterdir()} >= {"report.html", "recipe.toml", "export", "tokenizer"}


def test_the_reports_json_has_every_station(finished, capsys):
    directory, _ = finished
    assert main(["report", str(directory), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in summary["stages"]] == ["general", "repository", "sft"]
    for stage, steps in zip(summary["stages"], (5, 3, 4), strict=True):
        assert stage["steps"] == steps
        assert stage["tokens"] == {"general": 768}.get(stage["name"], steps * 256)
        assert stage["seconds"] > 0
        assert stage["tokens_per_s"] == pytest.approx(stage["tokens"] / stage["seconds"])
        assert stage["loss_first"] > 0 < stage["loss_last"]
    for moment in ("before", "after"):
        reward = summary["rl"][moment]
        assert 0 <= reward["low"] <= reward["mean"] <= reward["high"] <= 1
        assert reward["n"] == 8
    assert summary["rl"]["seconds"] > 0
    names = [station["name"] for station in summary["stations"]]
    assert names == [
        "corpus",
        "tokenizer",
        "shards",
        "general",
        "repository",
        "sft",
        "rl",
        "evaluation",
        "export",
        "report",
    ]
    assert main(["report", str(directory)]) == 0
    assert "tokens/s" in capsys.readouterr().out


def test_metrics_have_each_step_once(finished):
    directory, _ = finished
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = [(record["stage"], record["step"]) for record in records]
    expected = [("general", 5), ("repository", 3), ("sft", 4), ("rl", 4)]
    assert steps == [(stage, step) for stage, count in expected for step in range(1, count + 1)]


def test_transformers_loads_the_export_and_gives_the_same_logits(finished):
    directory, _ = finished
    theirs = transformers.Glm4MoeForCausalLM.from_pretrained(directory / "export" / "bf16", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory / "export" / "bf16")
    llm = LLM(directory / "export" / "bf16")
    text = "State the final answer: 3 + 4 ="
    ids = llm.tokenizer.encode(text)
    assert tokenizer(text, add_special_tokens=False).input_ids == ids
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    [completion] = llm.generate([ids], SamplingParams(max_tokens=1, temperature=0.0))
    # Two layers of float32 sums in another order, logits of size 1: some 1e-6.
    assert completion.logprobs[0] == pytest.approx(float(expected.max()), abs=1e-4)


def test_the_fp8_export_answers_too(finished):
    directory, _ = finished
    [completion] = LLM(directory / "export" / "fp8").generate(["one"], SamplingParams(max_tokens=5, seed=1))
    assert 1 <= len(completion.token_ids) <= 5
    config = json.loads((directory / "export" / "fp8" / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    tensors = load_file(directory / "export" / "fp8" / "model.safetensors")
    assert tensors["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float8_e4m3fn
    assert tensors["lm_head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_it_ends_with_the_same_weights_bit_for_bit(finished, tmp_path, seed):
    whole, _ = finished
    directory = tmp_path / "interrupted"
    delays = random.Random(seed)
    kills = 0
    for _ in range(4):
        process = quickstart(directory)
        time.sleep(delays.uniform(2.0, 6.0))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate(timeout=60)
    finish(quickstart(directory))
    assert kills
    assert weights(directory) == weights(whole)


def test_ctrl_c_says_how_to_go_on(tmp_path):
    process = quickstart(tmp_path / "run")
    assert process.stdout.readline().startswith("run directory")  # a signal before it finds no run to go on with
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    # CPython dies of the signal itself where it met it inside exec(), as torch's import uses; a shell shows 130 for both.
    assert process.returncode in (130, -signal.SIGINT), output
    assert "repeat the same command to go on" in output.splitlines()[-1]


def test_a_run_is_not_gone_on_with_by_another_recipe(finished, capsys):
    directory, _ = finished
    assert main(["quickstart", str(TINY), f"run.dir={directory}", "train.stages.0.num_tokens=9"]) == 1
    assert "was begun with another train.stages" in capsys.readouterr().err
    assert Recipe.load([directory / "recipe.toml"]).train.stages[0].num_tokens == 704


def test_a_damaged_checkpoint_stops_with_one_line(finished, tmp_path, capsys):
    directory, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(directory / "export" / "bf16", copy)
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert main(["generate", str(copy), "text"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "model.safetensors: cannot be read, it may be cut short" in error


def test_generate_and_chat_talk_to_the_run(finished, capsys, monkeypatch):
    directory, _ = finished
    assert main(["generate", str(directory), "def f", "--max-tokens", "4", "--json"]) == 0
    completion = json.loads(capsys.readouterr().out)
    assert set(completion) == {"token_ids", "text", "logprobs", "finish_reason"}
    assert 1 <= len(completion["token_ids"]) <= 4
    lines = iter(["1 + 1 =", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert main(["chat", str(directory), "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_a_users_corpus_joins_the_mixture(tmp_path):
    (tmp_path / "notes.txt").write_text("my own notes about nothing in particular\n" * 300)
    directory = tmp_path / "run"
    arguments = [str(TINY), f"run.dir={directory}", f'corpus.path="{tmp_path / "notes.txt"}"']
    assert main(["train", *arguments]) == 0
    assert (directory / "corpus" / "user.jsonl").exists()
    assert (directory / "shards" / "user.tokens").exists()


def test_a_kill_between_a_last_checkpoint_and_its_record_loses_no_line_of_the_report(finished, tmp_path, capsys):
    directory, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    file = copy / "stations.json"
    content = json.loads(file.read_text())
    content["stations"] = [s for s in content["stations"] if s["name"] not in ("sft", "rl", "evaluation")]
    del content["rl"]["seconds"]
    file.write_text(json.dumps(content))
    assert main(["quickstart", str(TINY), f"run.dir={copy}"]) == 0
    capsys.readouterr()
    assert main(["report", str(copy), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {s["name"] for s in summary["stations"]} >= {"sft", "rl", "evaluation"}
    assert summary["rl"]["seconds"] > 0
