"""Checkpoints that do not load: each gives one clear error that names the tensor and the file."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_model import random_model
from test_weights import fuse, rewrite, saved

from glmcore.errors import CheckpointError
from glmcore.model.glm import Glm
from glmcore.tensor_stream import TensorReader

Q = "model.layers.0.self_attn.q_proj.weight"
INDEX = "model.safetensors.index.json"


def cast(name, dtype):
    return lambda t: t.update({name: t[name].to(dtype)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.experts.3.up_proj.weight"),
            "tensor 'model.layers.1.mlp.experts.3.up_proj.weight' is missing",
        ),
        (lambda t: t.pop(f"{Q[:-6]}bias"), f"tensor '{Q[:-6]}bias' is missing"),
        (lambda t: t.update(extra=torch.zeros(2)), "tensor 'extra' is not part of the model"),
        (
            lambda t: (fuse(t), t.update({"model.layers.1.mlp.experts.0.up_proj.weight": torch.zeros(16, 32)})),
            "tensor 'model.layers.1.mlp.experts.0.up_proj.weight' is not part of the model",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.zeros(3, 3)}),
            "tensor 'lm_head.weight' has shape [3, 3], the model has [64, 32]",
        ),
        (lambda t: t.update({Q: t[Q].T.contiguous()}), f"tensor '{Q}' has shape [32, 64], the model has [64, 32]"),
        (cast("model.norm.weight", torch.int64), "tensor 'model.norm.weight' is I64, expected a float type"),
        (cast(Q, torch.float8_e5m2), f"tensor '{Q}' is F8_E5M2, expected a float type"),
        (cast(Q, torch.float8_e4m3fn), f"tensor '{Q}' is FP8, config.json has no quantization_config"),
    ],
)
def test_a_wrong_tensor_is_named_with_its_file(tmp_path, change, message):
    directory = saved(tmp_path)
    rewrite(directory, change)
    with pytest.raises(CheckpointError, match=re.escape(f"{directory}/model.safetensors: {message}")):
        Glm.from_pretrained(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q}_scale_inv"), f"tensor '{Q}_scale_inv' is missing"),
        (lambda t: t.update({f"{Q}_scale_inv": torch.ones(2, 1)}), f"tensor '{Q}_scale_inv' has shape [2, 1]"),
        (cast(f"{Q}_scale_inv", torch.int32), f"tensor '{Q}_scale_inv' is I32, expected a float type"),
        (cast(Q, torch.bfloat16), f"tensor '{Q}_scale_inv' is not part of the model"),
        (cast("model.norm.weight", torch.float8_e4m3fn), "tensor 'model.norm.weight_scale_inv' is missing"),
        (
            lambda t: (
                cast("model.norm.weight", torch.float8_e4m3fn)(t),
                t.update({"model.norm.weight_scale_inv": torch.ones(1, 1)}),
            ),
            "tensor 'model.norm.weight' is FP8 and no matrix",
        ),
    ],
)
def test_wrong_codes_or_scales_are_named_with_their_file(tmp_path, change, message):
    random_model(torch.float32).save_pretrained(tmp_path / "model", fp8=True)
    rewrite(tmp_path / "model", change)
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path}/model/model.safetensors: {message}")):
        Glm.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("fp8", [True, False])
def test_values_that_are_not_finite_are_found_when_asked_for(tmp_path, value, fp8):
    directory = tmp_path / "model"
    random_model(torch.float32).save_pretrained(directory, fp8=fp8)
    Glm.from_pretrained(directory, check_finite=True)
    name = f"{Q}_scale_inv" if fp8 else Q
    rewrite(directory, lambda t: t[name].view(-1)[-1:].fill_(value))
    Glm.from_pretrained(directory)
    with pytest.raises(CheckpointError, match=f"{directory}/model.safetensors: tensor '{Q}' has values that are not f"):
        Glm.from_pretrained(directory, check_finite=True)


def test_a_checkpoint_without_the_layer_that_config_json_tells_of_says_what_to_do(tmp_path):
    directory = saved(tmp_path)
    rewrite(directory, lambda t: [t.pop(name) for name in list(t) if name.startswith("model.layers.3.")])
    with pytest.raises(
        CheckpointError, match=r"multi-token-prediction layer are missing; set num_nextn_predict_layers"
    ):
        Glm.from_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0}))
    assert Glm.from_pretrained(directory).mtp_layer is None


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999, -1])
def test_a_checkpoint_cut_short_is_one_clear_error(tmp_path, keep):
    directory = saved(tmp_path)
    file = directory / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"model.safetensors: cannot be read, it may be cut short"):
        Glm.from_pretrained(directory)


def test_a_file_cut_short_after_it_was_opened_is_an_error_too(tmp_path):
    file = saved(tmp_path) / "model.safetensors"
    with TensorReader(file) as reader:
        last = list(reader.places)[-1]
        into = torch.empty(reader.places[last].num_bytes, dtype=torch.uint8)
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(
            CheckpointError, match=re.escape(f"{file}: tensor '{last}' cannot be read: the file ends at")
        ):
            reader.read(last, into)
        with pytest.raises(CheckpointError, match=f"tensor '{last}' has no {len(into)} bytes at 1"):
            reader.read(last, into, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h[Q].update(dtype="F8_E8M0"), f"tensor '{Q}' has the unknown type F8_E8M0"),
        (lambda h: h[Q].update(shape=[64, 33]), f"tensor '{Q}' is not where its type and shape put it"),
        (lambda h: h[Q]["data_offsets"].reverse(), "is not where its type and shape put it"),
        (lambda h: h[Q].pop("data_offsets"), "cannot be read"),
        (lambda h: h.update({Q: 3}), "cannot be read"),
        (lambda h: h.update({Q: h["lm_head.weight"]}), "is not where its type and shape put it"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, change, message):
    directory = saved(tmp_path)
    file = directory / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(CheckpointError, match=f"{re.escape(str(file))}: .*{re.escape(message)}"):
        Glm.from_pretrained(directory)


def in_two_shards(directory):
    """The checkpoint with an index; gives what the index maps."""
    tensors = load_file(directory / "model.safetensors")
    names = list(tensors)
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for number, half in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(half, file)
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path):
    directory = saved(tmp_path)
    weight_map = in_two_shards(directory)
    Glm.from_pretrained(directory)
    file = weight_map[Q]
    other = next(name for name in weight_map.values() if name != file)
    for index, message in [
        (weight_map | {"extra": file}, f"{file}: tensor 'extra' is missing, the index has it there"),
        (weight_map | {Q: "model-00003.safetensors"}, "model-00003.safetensors: file is missing, the index has tensor"),
        (weight_map | {Q: "../x.safetensors"}, f"{INDEX}: tensor '{Q}' is in '../x.safetensors', which is no file"),
        ({name: part for name, part in weight_map.items() if name != Q}, f"{file}: tensor '{Q}' is not in the index"),
        ({}, f"{INDEX}: not an index of tensors"),
    ]:
        (directory / INDEX).write_text(json.dumps({"weight_map": index}))
        with pytest.raises(CheckpointError, match=re.escape(f"{directory}/{message}")):
            Glm.from_pretrained(directory)
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    tensors = load_file(directory / other)
    save_file({**tensors, Q: torch.zeros(64, 32)}, directory / other)
    with pytest.raises(CheckpointError, match=f"model-00002.*: tensor '{Q}' is in model-00001.* too"):
        Glm.from_pretrained(directory)


def test_files_that_are_missing_or_too_many_are_named(tmp_path):
    directory = saved(tmp_path)
    (directory / INDEX).write_text("{")
    with pytest.raises(CheckpointError, match=rf"has model.safetensors and {INDEX}: remove the one that is not meant"):
        Glm.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"{INDEX}: not a JSON object"):
        Glm.from_pretrained(directory)
    (directory / INDEX).unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors: file is missing"):
        Glm.from_pretrained(directory)
    shutil.rmtree(directory)
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json"):
        Glm.from_pretrained(directory)
