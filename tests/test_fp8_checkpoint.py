import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_model import random_model

import glmcore.fp8.checkpoint
from glmcore import Glm
from glmcore.cli import main
from glmcore.errors import CheckpointError
from glmcore.fp8 import dequantize_checkpoint, quantize_blocks, quantize_checkpoint, verify_checkpoint

LAYERS = 6


@pytest.fixture
def source(tmp_path):
    """A checkpoint of several files with tensors of every kind."""
    directory = tmp_path / "source"
    directory.mkdir()
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        tensors = {
            f"{name}.self_attn.q_proj.weight": torch.randn(200, 130, generator=generator).bfloat16(),
            f"{name}.self_attn.q_proj.bias": torch.randn(200, generator=generator).bfloat16(),
            f"{name}.mlp.experts.3.down_proj.weight": torch.randn(64, 300, generator=generator).bfloat16(),
            f"{name}.mlp.gate.weight": torch.randn(8, 130, generator=generator),
            f"{name}.mlp.gate.e_score_correction_bias": torch.randn(8, generator=generator),
            f"{name}.input_layernorm.weight": torch.ones(130).bfloat16(),
        }
        file = f"model-{layer + 1:05d}-of-{LAYERS:05d}.safetensors"
        save_file(tensors, directory / file)
        weight_map |= dict.fromkeys(tensors, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps({"model_type": "glm4_moe"}))
    (directory / "tokenizer.json").write_text("{}")
    return directory


def tensors_of(directory):
    return {
        name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize(("layout", "suffix"), [("fp8", "_scale_inv"), ("compressed-tensors", "_scale")])
def test_each_weight_has_its_scales_and_the_rest_is_as_it_was(source, tmp_path, layout, suffix):
    quantize_checkpoint(source, tmp_path / "fp8", (64, 32), progress=False, layout=layout, num_threads=3)
    before, after = tensors_of(source), tensors_of(tmp_path / "fp8")
    for name, tensor in before.items():
        if "_proj.weight" in name:
            q, scale = quantize_blocks(tensor, (64, 32))
            assert torch.equal(after.pop(name).view(torch.uint8), q.view(torch.uint8))
            assert torch.equal(after.pop(name + suffix), scale)
        else:
            assert after[name].dtype == tensor.dtype
            assert torch.equal(after.pop(name), tensor)
    assert not after
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == layout
    index = json.loads((tmp_path / "fp8" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors_of(tmp_path / "fp8").keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors_of(tmp_path / "fp8").values())


@pytest.mark.parametrize("layout", ["fp8", "compressed-tensors"])
def test_there_and_back_again_there_is_the_same(source, tmp_path, layout):
    quantize_checkpoint(source, tmp_path / "fp8", progress=False, layout=layout)
    dequantize_checkpoint(tmp_path / "fp8", tmp_path / "bf16", progress=False)
    assert tensors_of(tmp_path / "bf16").keys() == tensors_of(source).keys()
    assert all(t.dtype != torch.float8_e4m3fn for t in tensors_of(tmp_path / "bf16").values())
    assert "quantization_config" not in json.loads((tmp_path / "bf16" / "config.json").read_text())
    quantize_checkpoint(tmp_path / "bf16", tmp_path / "again", progress=False, layout=layout)
    first, second = tensors_of(tmp_path / "fp8"), tensors_of(tmp_path / "again")
    different = [n for n in first if first[n].dtype == torch.float8_e4m3fn
                 and not torch.equal(first[n].view(torch.uint8), second[n].view(torch.uint8))]  # fmt: skip
    assert not different  # a block's largest value stays its largest, so codes come out the same


def test_a_scale_a_row_is_read(source, tmp_path):
    quantize_checkpoint(source, tmp_path / "rows", progress=False, layout="compressed-tensors")
    directory = tmp_path / "rows"
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            tensors[name + "_scale"] = torch.full((len(tensors[name]), 1), 0.5, dtype=torch.bfloat16)
        save_file(tensors, file)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["strategy"] = "channel"
    (directory / "config.json").write_text(json.dumps(config))
    dequantize_checkpoint(directory, tmp_path / "bf16", progress=False)
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = tensors_of(directory)[name].float() * 0.5
    assert torch.equal(tensors_of(tmp_path / "bf16")[name], expected.bfloat16())


def test_checksums_tell_a_changed_byte(source, tmp_path):
    quantize_checkpoint(source, tmp_path / "fp8", progress=False)
    assert verify_checkpoint(tmp_path / "fp8") == LAYERS + 3
    lines = (tmp_path / "fp8" / "SHA256SUMS").read_text().splitlines()
    digest, name = lines[0].split("  ")
    assert hashlib.sha256((tmp_path / "fp8" / name).read_bytes()).hexdigest() == digest
    file = tmp_path / "fp8" / f"model-00002-of-{LAYERS:05d}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model-00002.*its checksum differs"):
        verify_checkpoint(tmp_path / "fp8")


KILLS = 8
ZYGOTE = """
import os, sys, time
import torch
import glmcore.fp8.checkpoint as c
real = c.fsync
c.fsync = lambda path: (real(path), time.sleep(0.03))  # time to be killed in, between the files
for line in sys.stdin:  # a child of this process costs no import
    child = os.fork()
    if not child:
        c.quantize_checkpoint(sys.argv[1], sys.argv[2], progress=False)
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(source, tmp_path):
    quantize_checkpoint(source, tmp_path / "whole", progress=False)
    delays, kept = random.Random(0), []
    with subprocess.Popen(
        [sys.executable, "-c", ZYGOTE, source, tmp_path / "fp8"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as zygote:
        for _ in range(KILLS):
            zygote.stdin.write("go\n")
            zygote.stdin.flush()
            child = int(zygote.stdout.readline())
            time.sleep(delays.uniform(0.0, 0.15))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            assert zygote.stdout.readline() == "ended\n"
            if (tmp_path / "fp8").exists():
                break
            kept.append(len(list(tmp_path.glob(".fp8.tmp/model-*"))))
            assert {path.name for path in tmp_path.iterdir()} <= {"source", "whole", ".fp8.tmp"}
        zygote.stdin.close()
    # A whole file is not lost, but for the moment between the last and the directory's name.
    assert all(before <= after or before == LAYERS for before, after in pairwise(kept))
    if not (tmp_path / "fp8").exists():
        quantize_checkpoint(source, tmp_path / "fp8", progress=False)
    assert (tmp_path / "fp8" / "SHA256SUMS").read_text() == (tmp_path / "whole" / "SHA256SUMS").read_text()
    assert verify_checkpoint(tmp_path / "fp8")
    assert not list(tmp_path.glob(".*"))


def test_what_is_there_is_not_made_again(source, tmp_path, monkeypatch):
    made = []
    real = glmcore.fp8.checkpoint.TensorWriter

    def counting(path, layout):
        made.append(path.name)
        if len(made) == 4:
            raise KeyboardInterrupt
        return real(path, layout)

    monkeypatch.setattr(glmcore.fp8.checkpoint, "TensorWriter", counting)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, tmp_path / "fp8", progress=False)
    quantize_checkpoint(source, tmp_path / "fp8", progress=False)
    assert len(made) == LAYERS + 1  # the fourth is begun twice
    assert verify_checkpoint(tmp_path / "fp8") == LAYERS + 3


@pytest.mark.parametrize("limit", [3_000, 30_000])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(source, tmp_path, limit):
    code = (
        "import resource, sys; from glmcore.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.exit(main(['quantize', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "fp8")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if "error" in line]
    assert "cannot write" in line
    assert "File too large" in line
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_power_of_two_scales_are_written_and_said(source, tmp_path):
    quantize_checkpoint(source, tmp_path / "fp8", progress=False, scale_format="ue8m0")
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]
    assert config["scale_fmt"] == "ue8m0"
    before = tensors_of(source)
    for name, scale in tensors_of(tmp_path / "fp8").items():
        if name.endswith("_scale_inv"):
            assert torch.equal(scale.frexp().mantissa, torch.full_like(scale, 0.5))
            assert torch.equal(scale, quantize_blocks(before[name.removesuffix("_scale_inv")], scale_format="ue8m0")[1])
    # Codes times a power of two are exact in bfloat16, so going there and back again changes no value.
    dequantize_checkpoint(tmp_path / "fp8", tmp_path / "bf16", progress=False)
    quantize_checkpoint(tmp_path / "bf16", tmp_path / "again", progress=False, scale_format="ue8m0")
    dequantize_checkpoint(tmp_path / "again", tmp_path / "bf16-again", progress=False)
    first, second = tensors_of(tmp_path / "bf16"), tensors_of(tmp_path / "bf16-again")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_another_task_does_not_go_on_with_what_was_left(source, tmp_path):
    left = tmp_path / ".fp8.tmp"
    left.mkdir()
    (left / ".task.json").write_text("{}")
    (left / f"model-00001-of-{LAYERS:05d}.safetensors").write_bytes(b"of another task")
    quantize_checkpoint(source, tmp_path / "fp8", progress=False)
    assert verify_checkpoint(tmp_path / "fp8")
    assert tensors_of(tmp_path / "fp8")


def test_what_cannot_be_converted_is_named_and_leaves_nothing(source, tmp_path, capsys):
    file = source / f"model-00003-of-{LAYERS:05d}.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.self_attn.q_proj.weight"][7, 5] = float("nan")
    save_file(tensors, file)
    assert main(["quantize", str(source), str(tmp_path / "fp8")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert file.name in error
    assert "model.layers.2.self_attn.q_proj.weight" in error
    assert "row 7, column 5 is not finite" in error
    assert not (tmp_path / "fp8").exists()
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(CheckpointError, match="is not quantised"):
        dequantize_checkpoint(source, tmp_path / "bf16", progress=False)


@pytest.mark.parametrize("layout", ["fp8", "compressed-tensors"])
def test_a_model_loads_from_either_layout(tmp_path, layout):
    random_model(torch.float32).save_pretrained(tmp_path / "bf16")
    quantize_checkpoint(tmp_path / "bf16", tmp_path / "fp8", progress=False, layout=layout)
    dequantize_checkpoint(tmp_path / "fp8", tmp_path / "back", progress=False)
    from_fp8 = Glm.from_pretrained(tmp_path / "fp8", dtype=torch.bfloat16).state_dict()
    from_bf16 = Glm.from_pretrained(tmp_path / "back", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, from_bf16[name]) for name, tensor in from_fp8.items())
