"""The model computes what transformers' Glm4Moe computes, and its MTP layer what theirs does."""

import json

import pytest
import torch
import transformers
from conftest import TINY
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_model import packed, random_model
from torch import Tensor
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRotaryEmbedding, Glm4MoeTopkRouter
from transformers_peer import in_float64, mtp_name, mtp_tensors, peer_config, peer_mtp_of, peer_of

from glmcore.model.glm import Glm
from glmcore.model.rope import rotary_angles


@st.composite
def architectures(draw: st.DrawFn) -> dict[str, object]:
    """Fields that change the computation, over everything that the configuration allows."""
    layers, kv_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    experts = groups * draw(st.integers(2, 4))
    topk_group = draw(st.integers(1, groups))
    return {
        "vocab_size": draw(st.integers(2, 70)),
        "hidden_size": draw(st.integers(1, 40)),
        "intermediate_size": draw(st.integers(1, 50)),
        "num_hidden_layers": layers,
        "first_k_dense_replace": draw(st.integers(0, layers)),
        "num_attention_heads": kv_heads * draw(st.integers(1, 4)),
        "num_key_value_heads": kv_heads,
        "head_dim": 4 * draw(st.integers(1, 6)),
        "partial_rotary_factor": draw(st.sampled_from([0.5, 1.0])),
        "rope_theta": draw(st.floats(10.0, 1e7)),
        "attention_bias": draw(st.booleans()),
        "use_qk_norm": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        "n_routed_experts": experts,
        "n_shared_experts": draw(st.integers(1, 3)),
        "num_experts_per_tok": draw(st.integers(1, experts // groups * topk_group)),
        "moe_intermediate_size": draw(st.integers(1, 24)),
        "n_group": groups,
        "topk_group": topk_group,
        "norm_topk_prob": draw(st.booleans()),
        "routed_scaling_factor": draw(st.floats(0.5, 4.0)),
        "tie_word_embeddings": draw(st.booleans()),
    }


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=3)


def documents(model: Glm, lengths: list[int]) -> tuple[list[Tensor], tuple]:
    """Random documents and what our model takes for them."""
    ids, positions, layout = packed(lengths)
    ids = ids % model.config.vocab_size
    return list(ids.split(lengths)), (ids, positions, layout)


def assert_close(got: Tensor, expected: Tensor, name: str, floor: float = 0.0) -> None:
    """To 1e-9 of the largest value, in float64."""
    assert got.dtype == expected.dtype == torch.float64, name
    assert got.shape == expected.shape, name
    got, expected = got.detach(), expected.detach()
    error, size = float((got - expected).abs().max()), float(expected.abs().max())
    assert error <= 1e-9 * size + floor, f"{name}: off by {error} at a size of {size}"


@settings(deadline=None, max_examples=30)
@given(fields=architectures(), lengths=LENGTHS)
@example(fields={}, lengths=[50])
@example(fields={"use_qk_norm": False, "n_group": 4, "topk_group": 2, "tie_word_embeddings": True}, lengths=[33, 7, 33])
def test_logits_and_all_gradients_are_the_peers_in_float64(fields, lengths):
    model = random_model(torch.float64, **fields)
    peer = peer_of(model)
    mtp = peer_mtp_of(model, peer)
    texts, inputs = documents(model, lengths)

    output = model(*inputs, with_mtp=True)
    logits, mtp_logits = model.logits(output.hidden), model.logits(output.mtp_hidden)
    generator = torch.Generator().manual_seed(5)
    pull = torch.randn(2, *logits.shape, dtype=torch.float64, generator=generator)
    pull[1, torch.tensor(lengths).cumsum(0) - 1] = 0  # the last token of a document has no next one
    (logits * pull[0] + mtp_logits * pull[1]).sum().backward()

    start = 0
    with in_float64():
        for text in texts:
            rows = slice(start, start + len(text))
            hidden = peer.model(text[None]).last_hidden_state
            theirs = peer.lm_head(hidden)[0]
            assert_close(logits[rows], theirs, "logits")
            loss = (theirs * pull[0, rows]).sum()
            if len(text) > 1:
                positions = torch.arange(len(text) - 1)[None]
                state = mtp.forward_layer(0, hidden[:, :-1], positions, None, input_ids=text[None, 1:])
                theirs = mtp._project_to_logits(state)[0]
                assert_close(mtp_logits[rows][:-1], theirs, "MTP logits")
                loss = loss + (theirs * pull[1, rows][:-1]).sum()
            loss.backward()
            start = rows.stop

    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = {name: parameter.grad for name, parameter in peer.named_parameters()}
    names = {f"layers.{mtp_name(name)}": name for name in mtp_tensors(gradients, model)}
    prefix = f"model.layers.{model.config.num_hidden_layers}."
    for name, parameter in mtp.named_parameters():
        if name in names:
            expected[prefix + names[name]] = parameter.grad
    assert gradients.keys() == expected.keys()
    # A gradient that is zero by symmetry, as that of key biases on channels without rotation, is rounding on both sides:
    # sums of some thousand terms of the size of other gradients, each 1e-16 of its size off.
    floor = 1e-12 * max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        theirs = expected[name]
        assert_close(gradient, torch.zeros_like(gradient) if theirs is None else theirs, name, floor)
