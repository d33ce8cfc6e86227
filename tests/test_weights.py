import json
import shutil

import pytest
import torch
import transformers
from conftest import TINY
from safetensors.torch import load_file, save_file
from test_model import packed, random_model

from glmcore.errors import CheckpointError
from glmcore.model.glm import Glm


def saved(tmp_path, **fields):
    model = random_model(torch.float32, **fields)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(directory, change):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_qk_norm": False, "attention_bias": False},
        {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 2, "n_shared_experts": 2},
        {"partial_rotary_factor": 1.0, "norm_topk_prob": False, "rope_theta": 1e6, "num_key_value_heads": 4},
    ],
)
def test_transformers_computes_the_same_logits(tmp_path, fields):
    directory = saved(tmp_path, **fields)
    theirs = transformers.Glm4MoeForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ours = Glm.from_pretrained(directory, dtype=torch.float32)
    ids, positions, layout = packed([50], seed=3)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
        got = ours.logits(ours(ids, positions, layout).hidden)
    # Both round every sum of up to 64 products to float32 (2^-24 relative) in some 10 steps a layer and 3 layers, and
    # differ in the order of the sums; the logits are of size 10, so 10 * 30 * 2^-24 * 8 is about 1e-4.
    assert float(expected.abs().max()) > 1
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path):
    directory = saved(tmp_path)
    again = Glm.from_pretrained(directory, dtype=torch.float32)
    again.save_pretrained(tmp_path / "again")
    first, second = (
        load_file(directory / "model.safetensors"),
        load_file(tmp_path / "again" / "model.safetensors"),
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "model.layers.1.mlp.experts.7.down_proj.weight" in first
    assert "model.layers.3.eh_proj.weight" in first
    assert first["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    config = json.loads((directory / "config.json").read_text())
    assert config["head_dim"] == TINY["head_dim"]
    assert config["rope_theta"] == TINY["rope_theta"]


def test_fused_experts_and_the_copies_of_glm_4_5_load_too(tmp_path):
    directory = saved(tmp_path)
    expected = Glm.from_pretrained(directory, dtype=torch.float32).state_dict()

    def change(tensors):
        for layer in (1, 2, 3):
            prefix = f"model.layers.{layer}.mlp.experts."
            experts = range(TINY["n_routed_experts"])
            gate_up = [
                torch.cat([tensors.pop(f"{prefix}{e}.{half}_proj.weight") for half in ("gate", "up")]) for e in experts
            ]
            tensors[f"{prefix}gate_up_proj"] = torch.stack(gate_up)
            tensors[f"{prefix}down_proj"] = torch.stack([tensors.pop(f"{prefix}{e}.down_proj.weight") for e in experts])
        tensors["model.layers.3.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.3.shared_head.head.weight"] = tensors["lm_head.weight"].clone()

    rewrite(directory, change)
    got = Glm.from_pretrained(directory, dtype=torch.float32).state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_shards_with_an_index_load(tmp_path):
    directory = saved(tmp_path)
    expected = Glm.from_pretrained(directory, dtype=torch.float32).state_dict()
    tensors = load_file(directory / "model.safetensors")
    halves = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    weight_map = {}
    for number, half in enumerate(halves, start=1):
        save_file(half, directory / f"model-{number:05d}-of-00002.safetensors")
        weight_map |= dict.fromkeys(half, f"model-{number:05d}-of-00002.safetensors")
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    got = Glm.from_pretrained(directory, dtype=torch.float32).state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.experts.3.up_proj.weight"),
            r"experts.3.up_proj.weight' is missing",
        ),
        (
            lambda t: t.update(extra=torch.zeros(2)),
            r"model.safetensors: tensor 'extra' is not part of the model",
        ),
        (lambda t: t.update({"lm_head.weight": torch.zeros(3, 3)}), r"'lm_head.weight' has shape \[3, 3\]"),
    ],
)
def test_a_wrong_tensor_is_named_with_its_file(tmp_path, change, message):
    directory = saved(tmp_path)
    rewrite(directory, change)
    with pytest.raises(CheckpointError, match=message):
        Glm.from_pretrained(directory)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_a_checkpoint_cut_short_is_one_clear_error(tmp_path, keep):
    directory = saved(tmp_path)
    file = directory / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"model.safetensors: cannot be read, it may be cut short"):
        Glm.from_pretrained(directory)


def test_missing_files_are_named(tmp_path):
    directory = saved(tmp_path)
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors: file is missing"):
        Glm.from_pretrained(directory)
    shutil.rmtree(directory)
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json"):
        Glm.from_pretrained(directory)


def test_an_existing_directory_is_not_overwritten(tmp_path):
    directory = saved(tmp_path)
    with pytest.raises(CheckpointError, match="exists already"):
        random_model(torch.float32).save_pretrained(directory)
