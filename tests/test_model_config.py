"""config.json in every form of the hub, published models, and their parameter counts."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from glmcore.config import merge
from glmcore.errors import CheckpointError, ConfigError
from glmcore.model.config import GlmConfig
from glmcore.model.counts import count_parameters
from glmcore.model.glm import Glm
from glmcore.model.moe import MixtureOfExperts
from glmcore.model.presets import PRESETS
from glmcore.recipe import Recipe, find_recipe

PUBLISHED = {
    "architectures": ["Glm4MoeForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338],
    "first_k_dense_replace": 3,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 202752,
    "model_type": "glm4_moe",
    "moe_intermediate_size": 1536,
    "n_group": 1,
    "n_routed_experts": 160,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 92,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 2.5,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0",
    "use_cache": True,
    "use_qk_norm": True,
    "vocab_size": 151552,
}
"""GLM-4.7's config.json, whose values are GLM-4.6's."""
ROPE = {"rope_type": "default", "rope_theta": 1000000, "partial_rotary_factor": 0.5}


@st.composite
def configs(draw: st.DrawFn) -> GlmConfig:
    """Any configuration that is valid, of small sizes."""
    layers = draw(st.integers(1, 4))
    kv_heads = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    experts = groups * draw(st.integers(2, 4))
    topk_group = draw(st.integers(1, groups))
    return GlmConfig(
        vocab_size=draw(st.integers(1, 100)),
        hidden_size=draw(st.integers(1, 40)),
        intermediate_size=draw(st.integers(1, 40)),
        num_hidden_layers=layers,
        first_k_dense_replace=draw(st.integers(0, layers)),
        num_attention_heads=kv_heads * draw(st.integers(1, 3)),
        num_key_value_heads=kv_heads,
        head_dim=4 * draw(st.integers(1, 4)),
        partial_rotary_factor=draw(st.sampled_from([0.5, 1.0])),
        rope_theta=draw(st.floats(1.0, 1e8)),
        max_position_embeddings=draw(st.integers(1, 10**6)),
        attention_bias=draw(st.booleans()),
        use_qk_norm=draw(st.booleans()),
        rms_norm_eps=draw(st.floats(1e-12, 1e-2)),
        n_routed_experts=experts,
        n_shared_experts=draw(st.integers(1, 3)),
        num_experts_per_tok=draw(st.integers(1, experts // groups * topk_group)),
        moe_intermediate_size=draw(st.integers(1, 20)),
        n_group=groups,
        topk_group=topk_group,
        norm_topk_prob=draw(st.booleans()),
        routed_scaling_factor=draw(st.floats(0.1, 10.0)),
        num_nextn_predict_layers=draw(st.integers(0, 1)),
        tie_word_embeddings=draw(st.booleans()),
        initializer_range=draw(st.floats(1e-3, 1.0)),
        eos_token_id=draw(st.lists(st.integers(0, 99), max_size=3)),
        pad_token_id=draw(st.integers(0, 99)),
    )


def read(tmp_path, values) -> GlmConfig:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    return GlmConfig.from_hf(file)


def without(values, *keys):
    return {key: value for key, value in values.items() if key not in keys}


def on_meta(config: GlmConfig) -> Glm:
    with torch.device("meta"):
        return Glm(config)


@pytest.mark.parametrize(
    "values",
    [
        PUBLISHED,
        {**without(PUBLISHED, "rope_theta", "partial_rotary_factor", "rope_scaling"), "rope_parameters": ROPE},
        {**without(PUBLISHED, "rope_theta", "partial_rotary_factor"), "rope_scaling": ROPE},
        {**without(PUBLISHED, "num_nextn_predict_layers"), "num_mtp_layers": 1},
        {**without(PUBLISHED, "n_routed_experts"), "num_local_experts": 160},
        {**without(PUBLISHED, "torch_dtype"), "dtype": "bfloat16"},
        {**PUBLISHED, "sliding_window": None, "layer_types": ["full_attention"] * 92, "some_feature": None},
        {**PUBLISHED, "_name_or_path": "here", "id2label": {}, "quantization_config": {"quant_method": "fp8"}},
    ],
)
def test_every_form_of_the_published_file_is_read_alike(tmp_path, values):
    assert read(tmp_path, values) == GlmConfig.from_preset("glm-4.7") == GlmConfig.from_preset("glm-4.6")


@settings(deadline=None, max_examples=40)
@given(config=configs())
def test_a_configuration_goes_to_transformers_and_comes_back(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert isinstance(theirs, transformers.Glm4MoeConfig)
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta
    assert theirs.head_dim == config.head_dim
    theirs.save_pretrained(folder / "again")  # in the new form
    assert "rope_parameters" in json.loads((folder / "again" / "config.json").read_text())
    assert GlmConfig.from_hf(folder / "again" / "config.json") == config
    assert read(folder, json.loads(json.dumps(theirs.to_dict()))) == config


def test_a_missing_key_means_what_transformers_takes_it_for(tmp_path):
    required = {name: PUBLISHED[name] for name, field in GlmConfig.model_fields.items() if field.is_required()}
    bare = {"model_type": "glm4_moe", **without(required, "head_dim")}
    theirs = transformers.Glm4MoeConfig(**bare)
    got = read(tmp_path, bare)
    assert got == read(tmp_path, {"head_dim": 5120 // 96, **theirs.to_dict()})
    assert (got.use_qk_norm, got.attention_bias, got.rope_theta, got.head_dim) == (False, False, 10_000.0, 53)
    for name in required.keys() - {"head_dim"}:
        with pytest.raises(ConfigError, match=f"config.json: missing key '{name}'"):
            read(tmp_path, without(PUBLISHED, name))


@pytest.mark.parametrize(("told", "meant"), [(151329, [151329]), ([], []), (None, [])])
def test_end_tokens_may_be_one_several_or_none(tmp_path, told, meant):
    config = read(tmp_path, {**PUBLISHED, "eos_token_id": told, "pad_token_id": None})
    assert (config.eos_token_id, config.pad_token_id) == (meant, 151329 if meant else 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type='yarn' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling.type='linear' is not supported"),
        ({"rope_parameters": {**ROPE, "factor": 2.0}}, "rope_parameters.factor=2.0 is not supported"),
        ({"rope_parameters": {**ROPE, "rope_theta": 5}}, "rope_theta=1000000 and rope_parameters.rope_theta=5 contra"),
        ({"rope_parameters": [1]}, "rope_parameters must be an object"),
        ({"num_mtp_layers": 0}, "num_nextn_predict_layers=1 and num_mtp_layers=0 contradict"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers must be 0 or 1"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu' is"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ({"sliding_window": 4096}, "sliding_window=4096 is not supported"),
        ({"layer_types": ["sliding_attention"]}, "layer_types may only name 'full_attention'"),
        ({"scoring_func": "softmax"}, "scoring_func='softmax' is not supported"),
        ({"n_group": 160}, "leaves groups of one expert"),
        ({"vocab_size": "many"}, "vocab_size: input should be a valid integer"),
        ({"vocab_size": None}, "vocab_size: input should be a valid integer"),
        ({"rope_theta": "big"}, "rope_theta: input should be a valid number"),
        ({"attention_sinks": 4}, "unknown key 'attention_sinks'; remove it from the file if it does not"),
        ({"model_type": "glm4v_moe"}, "model_type is 'glm4v_moe', not 'glm4_moe'"),
        ({"architectures": ["Glm4MoeModel"]}, r"architectures is \['Glm4MoeModel'\], without 'Glm4MoeForCausalLM'"),
    ],
)
def test_what_the_model_does_not_support_is_refused_in_one_line(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message) as raised:
        read(tmp_path, {**PUBLISHED, **change})
    assert str(raised.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["", "[1]", "{", "\xff"])
def test_a_file_that_is_no_object_is_a_checkpoint_error(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config.json: not"):
        GlmConfig.from_hf(tmp_path / "config.json")


def test_a_preset_is_the_model_of_its_recipe_and_fields_beside_it_win():
    for name, recipe in PRESETS.items():
        written = merge([find_recipe(recipe)], [])["model"]
        assert "preset" not in written
        assert GlmConfig.from_preset(name) == GlmConfig.from_dict(written, origin=recipe)
    small = GlmConfig.from_dict({"preset": "glm-4.6", "num_hidden_layers": 4}, origin="model")
    assert small == GlmConfig.from_preset("glm-4.6").model_copy(update={"num_hidden_layers": 4})
    recipe = Recipe.load([find_recipe("nano")], ["model={preset = 'glm-4.5-air'}", "tokenizer.vocab_size=151552"])
    assert recipe.model == GlmConfig.from_preset("glm-4.5-air")
    with pytest.raises(ConfigError, match=r"no preset 'glm-9': there are glm-4.5, glm-4.5-air, glm-4.6, glm-4.7"):
        GlmConfig.from_preset("glm-9")


@pytest.mark.parametrize(
    ("name", "body", "with_mtp", "active", "active_with_mtp"),
    [
        ("glm-4.5", 351.25, 355.23, 32.1, 32.5),
        ("glm-4.5-air", 105.61, 107.99, 12.2, 12.5),
        ("glm-4.6", 351.25, 355.23, 32.1, 32.5),
        ("glm-4.7", 351.25, 355.23, 32.1, 32.5),
    ],
)
def test_published_models_have_their_published_sizes(name, body, with_mtp, active, active_with_mtp):
    config = GlmConfig.from_preset(name)
    model = on_meta(config)
    numel = {key: parameter.numel() for key, parameter in model.named_parameters()}
    embeddings = numel["model.embed_tokens.weight"] + numel["lm_head.weight"]
    mtp = sum(size for key, size in numel.items() if key.startswith(f"model.layers.{config.num_hidden_layers}."))
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    routed = sum(parameter.numel() for module in mixtures for parameter in module.experts.parameters())
    used = sum(numel.values()) - embeddings - routed * (1 - config.num_experts_per_tok / config.n_routed_experts)
    mtp_used = mtp - routed / len(mixtures) * (1 - config.num_experts_per_tok / config.n_routed_experts)

    assert round((sum(numel.values()) - embeddings - mtp) / 1e9, 2) == body
    assert round((sum(numel.values()) - embeddings) / 1e9, 2) == with_mtp
    assert round((used - mtp_used) / 1e9, 1) == active
    assert round(used / 1e9, 1) == active_with_mtp
    counts = count_parameters(config)
    assert (counts.body, counts.mtp, counts.embeddings) == (sum(numel.values()) - embeddings - mtp, mtp, embeddings)
    assert (counts.active_body, counts.active_mtp) == (used - mtp_used, mtp_used)


@settings(deadline=None, max_examples=40)
@given(config=configs())
def test_counts_from_the_configuration_are_those_of_the_model(config):
    counts, model = count_parameters(config), on_meta(config)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    patterns = {
        "attention": "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj",
        "norms": "layernorm _norm. enorm hnorm shared_head.norm",
        "router": "mlp.gate.",
        "routed_experts": ".experts.",
        "shared_experts": ".shared_experts.",
        "dense": "mlp.gate_proj mlp.up_proj mlp.down_proj",
        "mtp_projection": "eh_proj",
    }
    names = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for component, parts in patterns.items():
        found = sum(size for name, size in names.items() if any(part in name for part in parts.split()))
        assert counts.component(component) == found, component


def test_counting_needs_no_torch():
    check = (
        "import sys; from glmcore.model.config import GlmConfig; from glmcore.model.counts import count_parameters;"
        "print(count_parameters(GlmConfig.from_preset('glm-4.6')).total); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "356785884416\n", done.stderr


def test_the_default_end_tokens_are_glms():
    assert GlmConfig(**without(TINY, "eos_token_id")).eos_token_id == [151329, 151336, 151338]
