import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from exports import VOCAB_SIZE, export, recipe, tokenizer
from safetensors.torch import load_file

from glmcore.cli import main
from glmcore.convert import convert
from glmcore.engine.llm import LLM
from glmcore.errors import CheckpointError, ConfigError, TokenizerError
from glmcore.fp8 import verify_checkpoint
from glmcore.model.config import GlmConfig
from glmcore.rl.stage import load_policy
from glmcore.rundir import open_run
from glmcore.train.checkpoint import CheckpointStore

SIZES = {"hidden_size": 160, "intermediate_size": 144, "moe_intermediate_size": 48, "head_dim": 32}
"""So that matrices have blocks of several sizes."""


@pytest.fixture(scope="module")
def bf16(tmp_path_factory):
    return export(tmp_path_factory.mktemp("export") / "bf16", **SIZES)


def converted(source: Path, target: Path, to: str, **options: object) -> Path:
    convert(source, target, to, progress=False, **options)
    return target


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        x.dtype == b[name].dtype and torch.equal(x.view(torch.uint8), b[name].view(torch.uint8))
        for name, x in a.items()
    )


def test_weights_go_into_a_run_and_out_of_it_without_a_changed_bit(bf16, tmp_path):
    run = converted(bf16, tmp_path / "run", "run", recipe=recipe(tmp_path / "unused"))
    back = converted(run, tmp_path / "back", "bf16")
    assert same_bits(tensors(back), tensors(bf16))
    assert json.loads((back / "config.json").read_text()) == json.loads((bf16 / "config.json").read_text())
    assert (back / "tokenizer.json").read_bytes() == (bf16 / "tokenizer.json").read_bytes()


def test_one_checkpoint_of_a_run_can_be_named(bf16, tmp_path):
    run = converted(bf16, tmp_path / "run", "run", recipe=recipe(tmp_path / "unused"))
    [path] = (run / "checkpoints").iterdir()
    assert same_bits(tensors(converted(path, tmp_path / "back", "bf16")), tensors(bf16))


def test_fp8_codes_and_what_they_mean_stay_the_same_through_bfloat16_and_a_run(bf16, tmp_path):
    fp8 = converted(bf16, tmp_path / "fp8", "fp8")
    plain = converted(fp8, tmp_path / "plain", "bf16")
    run = converted(fp8, tmp_path / "run", "run", recipe=recipe(tmp_path / "unused"))
    assert same_bits(tensors(converted(run, tmp_path / "of_run", "bf16")), tensors(plain))
    first = tensors(fp8)
    for again in (converted(plain, tmp_path / "again", "fp8"), converted(run, tmp_path / "run_again", "fp8")):
        second = tensors(again)
        assert second.keys() == first.keys()
        for name, tensor in first.items():
            if name.endswith("_scale_inv"):
                # The largest value of a block, 448 scales, is rounded to bfloat16's 8 bits and makes the next scale.
                torch.testing.assert_close(second[name], tensor, rtol=2**-8, atol=0)
            else:
                assert torch.equal(second[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_an_export_has_all_that_a_model_needs_beside_its_weights(bf16, tmp_path):
    run = converted(bf16, tmp_path / "run", "run", recipe=recipe(tmp_path / "unused"))
    for form in ("bf16", "fp8"):
        directory = converted(run, tmp_path / form, form)
        names = {
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        }
        assert {file.name for file in directory.iterdir()} == {*names, "model.safetensors", "SHA256SUMS"}
        assert verify_checkpoint(directory) == len(names) + 1
        config = json.loads((directory / "config.json").read_text())
        assert ("quantization_config" in config) == (form == "fp8")
        told = json.loads((directory / "generation_config.json").read_text())
        assert (
            told["eos_token_id"] == config["eos_token_id"] == GlmConfig.from_hf(directory / "config.json").eos_token_id
        )
    assert LLM(tmp_path / "bf16").generate(["one two"])


def test_a_run_begins_where_it_is_told_with_the_weights_as_its_policy(bf16, tmp_path):
    shutil.copytree(bf16, tmp_path / "long")
    config = json.loads((bf16 / "config.json").read_text()) | {"rope_theta": 1e6}
    (tmp_path / "long" / "config.json").write_text(json.dumps(config))
    (tmp_path / "long" / "SHA256SUMS").unlink()
    run = converted(tmp_path / "long", tmp_path / "run", "run", recipe=recipe(tmp_path / "unused"), stage="rl")
    with open_run(recipe(run, *own_settings(run))) as directory:
        model, progress = load_policy(directory)
    assert progress.stage_index == 2
    assert model.rope_theta == 1e6
    state = tensors(bf16)
    assert torch.equal(model.state_dict()["lm_head.weight"], state["lm_head.weight"].float())


def own_settings(run: Path) -> list[str]:
    """The recipe that a converted run has, as overrides of the tiny one."""
    config = GlmConfig.from_hf(converted(run, run.parent / "own", "bf16") / "config.json").model_dump(
        exclude={"preset"}
    )
    return [
        f"tokenizer.path={run / 'tokenizer'}",
        *(f"model.{key}={json.dumps(value)}" for key, value in config.items()),
    ]


def test_what_does_not_fit_is_refused_in_one_line_before_anything_is_written(bf16, tmp_path, capsys):
    target = tmp_path / "target"

    def refused(error: type[Exception], words: str, source: Path, to: str, **options: object) -> None:
        with pytest.raises(error, match=words):
            converted(source, target, to, **options)
        assert not target.exists()
        assert not list(tmp_path.glob(".target*"))

    refused(CheckpointError, "is bf16 already", bf16, "bf16")
    refused(CheckpointError, "is no directory", tmp_path / "nothing", "bf16")
    refused(ConfigError, "needs a recipe", bf16, "run")
    refused(ConfigError, "nothing else does", bf16, "fp8", recipe=recipe(target))
    refused(ConfigError, "no stage 'nap'", bf16, "run", recipe=recipe(target), stage="nap")
    refused(ConfigError, "rope_theta=1e", bf16, "run", recipe=recipe(target), stage="rl")
    run = converted(bf16, tmp_path / "run", "run", recipe=recipe(target))
    refused(CheckpointError, "a run's already", run, "run", recipe=recipe(target))
    empty = shutil.copytree(run, tmp_path / "empty")
    shutil.rmtree(empty / "checkpoints")
    refused(CheckpointError, "no checkpoint yet", empty, "bf16")
    bare = shutil.copytree(bf16, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    refused(TokenizerError, "tokenizer.json", bare, "run", recipe=recipe(target))
    assert main(["convert", str(bf16), str(bf16), "--to", "fp8"]) == 1
    assert capsys.readouterr().err == f"glmcore: error: {bf16} exists already\n"


def test_damage_is_found_and_named(bf16, tmp_path):
    run = converted(bf16, tmp_path / "run", "run", recipe=recipe(tmp_path / "unused"))
    broken = shutil.copytree(bf16, tmp_path / "broken")
    flip(broken / "model.safetensors")
    for to in ("fp8", "run"):
        with pytest.raises(CheckpointError, match=r"model.safetensors: is not what was written"):
            converted(broken, tmp_path / f"of_{to}", to, recipe=recipe(tmp_path / "x") if to == "run" else None)
    [path] = (run / "checkpoints").iterdir()
    flip(path / "model-00000.safetensors")
    with pytest.raises(CheckpointError, match=r"model-00000.safetensors: is not what was written"):
        converted(path, tmp_path / "of_path", "bf16")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        converted(run, tmp_path / "of_run", "bf16")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def test_a_conversion_that_is_killed_at_any_moment_is_gone_on_with(bf16, tmp_path):
    run = converted(bf16, tmp_path / "run", "run", recipe=recipe(tmp_path / "unused"))
    whole = tensors(converted(run, tmp_path / "whole", "fp8"))
    code = (
        "import sys, torch, glmcore.convert, glmcore.model.weights as w\n"
        "torch.set_num_threads(1)\nw.MAX_SHARD_BYTES = 1 << 16\nfrom pathlib import Path\n"
        "print('go', flush=True)\n"
        f"glmcore.convert.convert(Path({str(run)!r}), Path(sys.argv[1]), 'fp8', progress=False)\n"
    )
    for number, delay in enumerate((0.02, 0.1)):
        target = tmp_path / f"killed-{number}"
        process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if not target.exists():
            subprocess.run(
                [sys.executable, "-c", code, str(target)], check=True, timeout=120, stdout=subprocess.DEVNULL
            )
        assert same_bits(tensors(target), whole)
        verify_checkpoint(target)
        assert not list(tmp_path.glob(".killed*"))


def test_a_checkpoint_of_several_files_is_the_same_in_one(bf16, tmp_path, monkeypatch):
    run = converted(bf16, tmp_path / "run", "run", recipe=recipe(tmp_path / "unused"))
    monkeypatch.setattr("glmcore.model.weights.MAX_SHARD_BYTES", 1 << 17)
    split = converted(run, tmp_path / "split", "bf16")
    assert len(list(split.glob("*.safetensors"))) > 2
    assert same_bits(tensors(split), tensors(bf16))


def test_transformers_answers_from_an_export_as_our_engine_does(bf16, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from glmcore.chat import apply_chat_template
    from glmcore.engine.sampling import SamplingParams

    run = converted(bf16, tmp_path / "run", "run", recipe=recipe(tmp_path / "unused"))
    directory = converted(run, tmp_path / "export", "bf16")
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    theirs.eval()
    assert theirs.generation_config.eos_token_id == GlmConfig.from_hf(directory / "config.json").eos_token_id
    messages = [{"role": "user", "content": "one two three"}]
    prompt = AutoTokenizer.from_pretrained(directory).apply_chat_template(messages, add_generation_prompt=True)[
        "input_ids"
    ]
    assert prompt == apply_chat_template(tokenizer(), messages, add_generation_prompt=True).ids.tolist()
    [ours] = LLM(directory).generate([prompt], SamplingParams(temperature=0, max_tokens=12, stop_token_ids=()))
    ids = torch.tensor([prompt + ours.token_ids])
    with torch.no_grad():
        logprobs = theirs(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert logprobs.argmax(-1).tolist() == ours.token_ids
    # Two float32 models of the same weights: sums of 160 terms in another order, through three layers.
    torch.testing.assert_close(logprobs.max(-1).values, torch.tensor(ours.logprobs), rtol=0, atol=1e-4)
    assert len(ours.logprobs) == 12
    assert theirs.config.vocab_size == VOCAB_SIZE


def test_the_newest_checkpoint_of_a_run_is_taken(bf16, tmp_path):
    run = converted(bf16, tmp_path / "run", "run", recipe=recipe(tmp_path / "unused"))
    store = CheckpointStore(run / "checkpoints", recipe(run).train.checkpoint)
    saved = store.latest()
    assert saved is not None
    assert (saved.progress.stage_index, saved.progress.step) == (0, 0)
    assert main(["convert", str(run), str(tmp_path / "out"), "--to", "fp8"]) == 0
    assert verify_checkpoint(tmp_path / "out") == 6
