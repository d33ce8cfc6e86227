"""An engine that holds its weights in FP8."""

import os
from pathlib import Path

import pytest
import torch
from conftest import TINY
from test_model import packed, random_model
from torch import nn

from glmcore import LLM, Glm, SamplingParams, train_tokenizer
from glmcore.engine.engine import Engine
from glmcore.errors import CheckpointError, SyncError
from glmcore.fp8 import Float8Experts, Float8Linear, WeightPublisher, dequantize_blocks, quantize_groups
from glmcore.fp8.held import HeldWeight
from glmcore.fp8.layout import is_quantized
from glmcore.model.fp8 import copy_codes, hold_in_fp8, weights_to_fill
from glmcore.model.weights import hf_views

PROMPTS = [[5, 6, 7], [9]]
PARAMS = [SamplingParams(max_tokens=16, seed=seed) for seed in range(2)]


def checkpoint(folder: Path) -> Path:
    random_model(torch.float32).save_pretrained(folder / "fp8", fp8=True)
    return folder / "fp8"


def held_from(directory: Path) -> Glm:
    model = hold_in_fp8(Glm.from_pretrained(directory, dtype=torch.float32))
    assert copy_codes(model, directory)
    return model


def hidden_of(model: Glm) -> torch.Tensor:
    with torch.no_grad():
        return model(*packed([20, 7, 40])).hidden


class RoundInputs:
    """Quantise the inputs of a layer and bring them back, as `Float8Linear` does before it multiplies."""

    def __call__(self, module, inputs):
        x = inputs[0].reshape(-1, inputs[0].shape[-1]).contiguous()
        rounded = dequantize_blocks(*quantize_groups(x), (1, 128)).reshape(inputs[0].shape)
        return (rounded, *inputs[1:])


def test_what_is_published_in_fp8_is_held_in_fp8_and_nothing_else():
    plain, model = random_model(torch.float32), hold_in_fp8(random_model(torch.float32))
    targets = weights_to_fill(model)
    assert set(targets) == set(hf_views(plain.state_dict()))
    for name, target in targets.items():
        assert isinstance(target, HeldWeight) == is_quantized(name)
    kinds = [type(module) for module in model.modules()]
    num_layers = TINY["num_hidden_layers"] + 1
    assert kinds.count(Float8Experts) == num_layers - 1
    assert kinds.count(nn.Linear) == 2  # the head and eh_proj
    assert kinds.count(Float8Linear) == 7 * num_layers


def test_the_model_is_the_one_of_the_checkpoint_with_rounded_inputs(tmp_path):
    directory = checkpoint(tmp_path)
    plain = Glm.from_pretrained(directory, dtype=torch.float32)
    held = held_from(directory)
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear) and is_quantized(f"{name}.weight"):
            module.register_forward_pre_hook(RoundInputs())
            own = held.get_submodule(name)
            module.weight.data = dequantize_blocks(own.weight, own.weight_scale_inv)  # not rounded to bfloat16
    dense = held.model.layers[0]
    # The first layer has no routed experts, whose inner inputs no hook reaches.
    x = torch.randn(30, TINY["hidden_size"])
    with torch.no_grad():
        got, expected = dense.mlp(x), plain.model.layers[0].mlp(x)
    # float32 sums of up to 48 products in another order, and then a value that may round to the other code.
    assert (got - expected).norm() < 1e-2 * expected.norm()
    assert (got - expected).abs().median() < 1e-5 * expected.abs().max()


def test_the_codes_are_those_of_the_checkpoint_and_answers_stay_near(tmp_path):
    directory = checkpoint(tmp_path)
    held, plain = held_from(directory), Glm.from_pretrained(directory, dtype=torch.float32)
    values = hf_views(plain.state_dict())
    for name, target in weights_to_fill(held).items():
        same = target.values() if isinstance(target, HeldWeight) else target
        assert torch.equal(same.float(), values[name].float()), name
    error = (hidden_of(held) - hidden_of(plain)).norm() / hidden_of(plain).norm()
    # Four bits in every input of four layers; a token may also go to another expert. Unrelated weights give 1.4.
    assert 0.001 < error < 0.6
    random_model(torch.float32).save_pretrained(tmp_path / "bf16")
    assert not copy_codes(held, tmp_path / "bf16")


def test_generation_is_exact_for_a_batch_and_alone_with_weights_in_fp8(tmp_path):
    engine = Engine(held_from(checkpoint(tmp_path)), stop_token_ids=[1, 2])
    first, second = engine.generate(PROMPTS, PARAMS), engine.generate(PROMPTS, PARAMS)
    assert [g.token_ids for g in first] == [g.token_ids for g in second]
    assert all(0 < len(g.token_ids) <= 16 for g in first)


def test_an_update_puts_codes_in_place_and_the_checksum_agrees(tmp_path):
    directory = checkpoint(tmp_path)
    engine = Engine(hold_in_fp8(random_model(torch.float32).init_weights(seed=9)), stop_token_ids=[1, 2])
    trainer = random_model(torch.float32)
    publication = WeightPublisher(bucket_bytes=4096).publish(4, trainer.state_dict())
    checksum = engine.update_weights(4, publication)
    assert checksum == publication.checksum
    expected = Engine(held_from(directory), stop_token_ids=[1, 2]).generate(PROMPTS, PARAMS)
    got = engine.generate(PROMPTS, PARAMS)
    assert [(g.token_ids, g.logprobs) for g in got] == [(g.token_ids, g.logprobs) for g in expected]


def test_an_update_that_is_not_in_fp8_is_refused():
    engine = Engine(hold_in_fp8(random_model(torch.float32)), stop_token_ids=[1, 2])
    publication = WeightPublisher(precision="bf16").publish(1, random_model(torch.float32).state_dict())
    with pytest.raises(SyncError, match="the engine holds FP8: publish it as FP8"):
        engine.update_weights(1, publication)
    blocks = WeightPublisher(block=(8, 8)).publish(1, random_model(torch.float32).state_dict())
    with pytest.raises(SyncError, match="128x128 blocks"):
        engine.update_weights(1, blocks)


def test_llm_holds_fp8_where_it_is_asked_to(tmp_path):
    tokenizer = train_tokenizer([Path(os.__file__).read_text()], vocab_size=300, progress=False)
    random_model(torch.float32, vocab_size=300).save_pretrained(tmp_path / "m", fp8=True)
    tokenizer.save(tmp_path / "m" / "tokenizer.json")
    llm = LLM(tmp_path / "m", fp8=True)
    assert any(isinstance(module, Float8Experts) for module in llm.engine.model.modules())
    [completion] = llm.generate(["import os"], SamplingParams(max_tokens=8, seed=1))
    assert completion.token_ids


def test_codes_of_another_model_are_refused(tmp_path):
    directory = checkpoint(tmp_path)
    wider = hold_in_fp8(random_model(torch.float32, moe_intermediate_size=32))
    with pytest.raises(CheckpointError, match=r"tensor '.*experts.0.*': codes .* do not fit"):
        copy_codes(wider, directory)
