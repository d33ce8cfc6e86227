"""Checkpoints that load: what is written, in every layout that there is, comes back as it was."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import TINY
from safetensors.torch import load_file, save_file
from test_model import packed, random_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from glmcore.errors import CheckpointError
from glmcore.fp8 import dequantize_blocks, quantize_checkpoint, verify_checkpoint
from glmcore.model import weights
from glmcore.model.fp8 import hold_in_fp8
from glmcore.model.glm import Glm
from glmcore.model.weights import hf_views, load_weights

COPIES = {
    "model.layers.3.embed_tokens.weight": "model.embed_tokens.weight",
    "model.layers.3.shared_head.head.weight": "lm_head.weight",
}
"""What the MTP layer of GLM-4.5's checkpoints holds again."""


def saved(tmp_path, **fields):
    model = random_model(torch.float32, **fields)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(directory, change):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def read_all(directory):
    tensors = {}
    for file in directory.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def state(directory, dtype=torch.float32):
    return Glm.from_pretrained(directory, dtype=dtype).state_dict()


def fuse(tensors):
    """Experts in stacks, as transformers has them in memory and may write them."""
    for layer in (1, 2, 3):
        prefix = f"model.layers.{layer}.mlp.experts."
        experts = range(TINY["n_routed_experts"])
        gate_up = [
            torch.cat([tensors.pop(f"{prefix}{e}.{half}_proj.weight") for half in ("gate", "up")]) for e in experts
        ]
        tensors[f"{prefix}gate_up_proj"] = torch.stack(gate_up)
        tensors[f"{prefix}down_proj"] = torch.stack([tensors.pop(f"{prefix}{e}.down_proj.weight") for e in experts])


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name].dtype == expected[name].dtype, name
        assert torch.equal(got[name], expected[name]), name


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}, {"num_nextn_predict_layers": 0}])
def test_a_checkpoint_comes_back_as_it_was_written(tmp_path, fields):
    directory = saved(tmp_path, **fields)
    Glm.from_pretrained(directory, dtype=torch.float32).save_pretrained(tmp_path / "again")
    first = load_file(directory / "model.safetensors")
    assert_same(load_file(tmp_path / "again" / "model.safetensors"), first)
    assert "model.layers.1.mlp.experts.7.down_proj.weight" in first
    assert ("model.layers.3.eh_proj.weight" in first) == ("num_nextn_predict_layers" not in fields)
    assert "lm_head.weight" in first  # where it is tied too: some engines do not tie by themselves
    for name, tensor in first.items():
        assert tensor.dtype == (torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16)
    assert (directory / "config.json").read_bytes() == (tmp_path / "again" / "config.json").read_bytes()
    config = json.loads((directory / "config.json").read_text())
    assert (config["head_dim"], config["rope_theta"]) == (TINY["head_dim"], TINY["rope_theta"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_become_the_type_that_is_asked_for_and_correction_biases_float32(tmp_path, dtype):
    directory = saved(tmp_path)
    expected = load_file(directory / "model.safetensors")
    for name, tensor in hf_views(state(directory, dtype)).items():
        bias = name.endswith("e_score_correction_bias")
        assert tensor.dtype == (torch.float32 if bias else dtype)
        assert torch.equal(tensor, expected[name].to(tensor.dtype))


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16])
def test_stored_floats_of_any_width_are_converted_part_by_part(tmp_path, stored, monkeypatch):
    directory = saved(tmp_path)
    expected = state(directory)
    rewrite(directory, lambda t: t.update({name: tensor.to(stored) for name, tensor in t.items()}))
    monkeypatch.setattr("glmcore.model.checkpoint._SLAB_BYTES", 500)  # a matrix is several parts
    got = state(directory)
    for name in expected:
        assert torch.equal(got[name], expected[name].to(stored).float()), name


@pytest.mark.parametrize("with_copies", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_experts_in_stacks_and_the_copies_of_glm_4_5_load_too(tmp_path, fused, with_copies, caplog):
    directory = saved(tmp_path)
    expected = state(directory)
    if fused:
        rewrite(directory, fuse)
    if with_copies:
        rewrite(directory, lambda t: t.update({copy: t[original].clone() for copy, original in COPIES.items()}))
    assert_same(state(directory), expected)
    assert not caplog.records


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_that_differs_is_told_and_the_model_s_own_is_used(tmp_path, copy, caplog):
    directory = saved(tmp_path)
    expected = state(directory)
    rewrite(directory, lambda t: t.update({copy: t[COPIES[copy]] + 1}))
    with caplog.at_level(logging.WARNING):
        assert_same(state(directory), expected)
    [record] = caplog.records
    assert record.getMessage().startswith(f"{directory}/model.safetensors: tensor '{copy}' differs from")


def test_a_tied_head_is_one_parameter_whether_the_checkpoint_has_it_or_not(tmp_path):
    directory = saved(tmp_path, tie_word_embeddings=True)
    for change in (dict, lambda t: t.pop("lm_head.weight")):
        rewrite(directory, change)
        model = Glm.from_pretrained(directory, dtype=torch.float32)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(
            model.lm_head.weight, load_file(directory / "model.safetensors")["model.embed_tokens.weight"].float()
        )
    rewrite(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: tensor 'lm_head.weight' differs from .* tie_word_em"
    ):
        Glm.from_pretrained(directory)


def test_shards_with_an_index_load_and_are_written(tmp_path, monkeypatch):
    directory = saved(tmp_path)
    expected = load_file(directory / "model.safetensors")
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 20_000)
    Glm.from_pretrained(directory).save_pretrained(tmp_path / "shards")
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    for file in files:
        size = sum(tensor.nbytes for tensor in load_file(file).values())
        assert size <= 20_000 or len(load_file(file)) == 1
    assert_same(read_all(tmp_path / "shards"), expected)
    assert_same(state(tmp_path / "shards"), state(directory))
    assert verify_checkpoint(tmp_path / "shards") == len(files) + 2


def test_fp8_is_written_as_if_a_bfloat16_checkpoint_were_quantised(tmp_path, monkeypatch):
    model = random_model(torch.float32, hidden_size=160, intermediate_size=200, moe_intermediate_size=140)
    model.save_pretrained(tmp_path / "bf16")
    quantize_checkpoint(tmp_path / "bf16", tmp_path / "expected", progress=False)
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 1_000_000)
    model.save_pretrained(tmp_path / "fp8", fp8=True)
    assert len(list((tmp_path / "fp8").glob("*.safetensors"))) > 1
    got, expected = read_all(tmp_path / "fp8"), read_all(tmp_path / "expected")
    raw = {name: tensor.view(torch.uint8) for name, tensor in got.items()}
    assert_same(raw, {name: tensor.view(torch.uint8) for name, tensor in expected.items()})
    assert {name: tensor.dtype for name, tensor in got.items()} == {name: t.dtype for name, t in expected.items()}
    configs = [json.loads((tmp_path / which / "config.json").read_text()) for which in ("fp8", "expected")]
    assert configs[0] == configs[1]
    verify_checkpoint(tmp_path / "fp8")
    for dtype in (torch.bfloat16, torch.float32):
        for name, value in hf_views(state(tmp_path / "fp8", dtype)).items():
            if f"{name}_scale_inv" in got:
                told = dequantize_blocks(got[name], got[f"{name}_scale_inv"], dtype=torch.bfloat16)
                assert torch.equal(value, told.to(dtype)), name


def test_both_layouts_of_fp8_load_alike(tmp_path):
    random_model(torch.float32).save_pretrained(tmp_path / "bf16")
    for layout in ("fp8", "compressed-tensors"):
        quantize_checkpoint(tmp_path / "bf16", tmp_path / layout, layout=layout, progress=False)
    assert_same(state(tmp_path / "compressed-tensors"), state(tmp_path / "fp8"))


def test_weights_go_into_a_model_that_is_there_or_leave_it_as_it_was(tmp_path):
    directory = saved(tmp_path)
    model = random_model(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    memory = [parameter.data_ptr() for parameter in model.parameters()]
    load_weights(model, directory)
    assert [parameter.data_ptr() for parameter in model.parameters()] == memory
    expected = hf_views(Glm.from_pretrained(directory).state_dict())
    for name, tensor in hf_views(model.state_dict()).items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
    rewrite(directory, lambda t: (t.pop("model.norm.weight"), t.update({"lm_head.weight": t["lm_head.weight"] + 1})))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' is missing"):
        load_weights(model, directory)
    assert_same(model.state_dict(), before)


def test_weights_go_to_the_device_that_is_asked_for(tmp_path):
    model = Glm.from_pretrained(saved(tmp_path), device="meta")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("fp8", [True, False])
def test_weights_on_a_gpu_are_those_on_the_cpu(tmp_path, fp8):
    random_model(torch.float32).save_pretrained(tmp_path / "model", fp8=fp8)
    on_gpu = Glm.from_pretrained(tmp_path / "model", device="cuda", check_finite=True)
    assert {tensor.device.type for tensor in on_gpu.state_dict().values()} == {"cuda"}
    assert_same(on_gpu.cpu().state_dict(), state(tmp_path / "model", torch.bfloat16))
    for device in ("cuda", "cpu"):
        on_gpu.to(device).save_pretrained(tmp_path / device, fp8=fp8)
    assert (tmp_path / "cuda" / "SHA256SUMS").read_text() == (tmp_path / "cpu" / "SHA256SUMS").read_text()


def test_a_loaded_model_trains(tmp_path):
    model = Glm.from_pretrained(saved(tmp_path), dtype=torch.float32)
    ids, positions, layout = packed([9])
    output = model(ids, positions, layout, with_mtp=True)
    (model.logits(output.hidden).sum() + model.logits(output.mtp_hidden).sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_that_is_spread_over_ranks_is_refused(tmp_path):
    directory = saved(tmp_path)
    model = random_model(torch.float32)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        norm = distribute_tensor(model.model.norm.weight.detach(), init_device_mesh("cpu", (1,)))
        model.model.norm.weight = torch.nn.Parameter(norm)
        for use in (lambda: load_weights(model, directory), lambda: model.save_pretrained(tmp_path / "again")):
            with pytest.raises(CheckpointError, match=r"tensor 'model.norm.weight' is spread over ranks"):
                use()
    finally:
        dist.destroy_process_group()


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    model = random_model(torch.float32)
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        model.save_pretrained(tmp_path / "there")
    with torch.no_grad():
        model.model.layers[2].mlp.experts.down_proj[5, 3, 1] = float("nan")
    with pytest.raises(CheckpointError, match=r"tensor 'model.layers.2.mlp.experts.5.down_proj.weight': .*3"):
        model.save_pretrained(tmp_path / "fp8", fp8=True)
    with pytest.raises(
        CheckpointError, match=r"tensor '.*' is held as torch.float8_e4m3fn: save the model that it was"
    ):
        hold_in_fp8(random_model(torch.float32)).save_pretrained(tmp_path / "held")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"cannot write {tmp_path}/file/model"):
        model.save_pretrained(tmp_path / "file" / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]


def test_the_python_of_the_guide_runs(capsys):
    guide = (Path(__file__).parents[1] / "docs" / "pretrained.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL):
        exec(compile(code, "pretrained.md", "exec"), {})
    assert capsys.readouterr().out == "355.23B, 32.1B of them active\n"
