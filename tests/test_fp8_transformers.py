"""What transformers makes of our FP8 checkpoints, as far as a machine without a GPU can tell.

transformers runs FP8 on a GPU only; what it loads on the CPU is the dequantised model, and that is compared here.
"""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_model import packed, random_model

from glmcore import Glm
from glmcore.fp8 import dequantize_checkpoint, quantize_checkpoint

BLOCK = (16, 16)
"""Divides every side of the tiny model, so that a matrix has several blocks."""
ONE_BLOCK_EXPERTS = (32, 32)
"""An expert's matrix is one block: transformers 5.23 multiplies an expert's codes by its scales without a look at blocks
when the layout is that of compressed-tensors; other matrices have several."""
MTP_LAYER = "model.layers.3."


def theirs(directory, config=None):
    model, report = transformers.Glm4MoeForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, quantization_config=config, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert all(name.startswith(MTP_LAYER) for name in report["unexpected_keys"])
    return model


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("scale_format", ["float32", "ue8m0"])
@pytest.mark.parametrize("layout", ["fp8", "compressed-tensors"])
def test_transformers_dequantises_to_our_bfloat16_copy(tmp_path, layout, scale_format):
    pytest.importorskip("accelerate", reason="transformers asks for accelerate to load FP8")
    if layout == "compressed-tensors":
        pytest.importorskip("compressed_tensors", reason="transformers asks for it to load this layout")
    block = BLOCK if layout == "fp8" else ONE_BLOCK_EXPERTS
    random_model(torch.float32).save_pretrained(tmp_path / "bf16")
    quantize_checkpoint(tmp_path / "bf16", tmp_path / "fp8", block, False, layout=layout, scale_format=scale_format)
    dequantize_checkpoint(tmp_path / "fp8", tmp_path / "back", progress=False)
    if layout == "fp8":
        config = transformers.FineGrainedFP8Config(dequantize=True, weight_block_size=BLOCK)
    else:
        config = transformers.CompressedTensorsConfig(run_compressed=False)
    from_fp8, from_copy = theirs(tmp_path / "fp8", config), theirs(tmp_path / "back")
    expected = dict(from_copy.named_parameters())
    assert all(torch.equal(tensor, expected.pop(name)) for name, tensor in from_fp8.named_parameters())
    assert not expected
    ids, _, _ = packed([50])
    with torch.no_grad():
        assert torch.equal(from_fp8(ids[None]).logits, from_copy(ids[None]).logits)
    ours = Glm.from_pretrained(tmp_path / "fp8", dtype=torch.bfloat16).state_dict()
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(ours[name], dict(from_fp8.named_parameters())[name])


@pytest.mark.parametrize("scale_format", ["float32", "ue8m0"])
def test_the_config_says_to_transformers_what_was_done(tmp_path, scale_format):
    random_model(torch.float32).save_pretrained(tmp_path / "bf16")
    quantize_checkpoint(tmp_path / "bf16", tmp_path / "fp8", BLOCK, False, scale_format=scale_format)
    told = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]
    config = transformers.FineGrainedFP8Config(**told)
    assert tuple(config.weight_block_size) == BLOCK
    assert config.activation_scheme == "dynamic"
    assert config.scale_fmt == {"float32": "float", "ue8m0": "ue8m0"}[scale_format]
    # Every linear layer is either quantised or said not to be.
    tensors = load_file(tmp_path / "fp8" / "model.safetensors")
    matrices = {
        name.removesuffix(".weight") for name, t in tensors.items() if name.endswith(".weight") and t.dim() == 2
    }
    quantized = {name.removesuffix(".weight_scale_inv") for name in tensors if name.endswith("_scale_inv")}
    assert set(config.modules_to_not_convert) == matrices - quantized


def test_the_other_layouts_config_is_read_by_its_own_library(tmp_path):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStrategy

    random_model(torch.float32).save_pretrained(tmp_path / "bf16")
    quantize_checkpoint(tmp_path / "bf16", tmp_path / "fp8", BLOCK, False, layout="compressed-tensors")
    told = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(told)
    [group] = config.config_groups.values()
    assert group.weights.strategy == QuantizationStrategy.BLOCK
    assert list(group.weights.block_structure) == list(BLOCK)
    assert group.input_activations.strategy == QuantizationStrategy.GROUP
    assert "lm_head" in config.ignore
