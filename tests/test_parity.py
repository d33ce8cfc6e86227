"""The model computes what transformers' Glm4Moe computes, and its MTP layer what theirs does."""

import copy

import pytest
import torch
import transformers
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_model import packed, random_model
from torch import Tensor
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRotaryEmbedding, Glm4MoeTopkRouter
from transformers_peer import in_float64, mtp_name, mtp_tensors, peer_mtp_of, peer_of

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
    # sums of some hundred terms of the size of other gradients, each 1e-16 of its size off.
    floor = 1e-13 * max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        theirs = expected[name]
        assert_close(gradient, torch.zeros_like(gradient) if theirs is None else theirs, name, floor)


@settings(deadline=None, max_examples=60)
@given(
    theta=st.floats(2.0, 1e7),
    half_head=st.integers(1, 64),
    factor=st.sampled_from([0.5, 1.0]),
    first=st.integers(0, 202_000),
    count=st.integers(1, 700),
)
def test_angles_of_the_rotary_embedding_are_the_peers_to_the_bit(theta, half_head, factor, first, count):
    head_dim = int(2 * half_head / factor)
    config = transformers.Glm4MoeConfig(
        head_dim=head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": factor},
    )
    positions = torch.arange(first, first + count)
    theirs = Glm4MoeRotaryEmbedding(config)(torch.zeros(1), positions[None])
    for got, expected in zip(rotary_angles(positions, 2 * half_head, theta), theirs, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got[:, 0], expected[0, :, : got.shape[-1]])  # the peer has the frequencies twice


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def same_experts(one: list[Tensor], other: list[Tensor], count: int) -> int:
    """Tokens before the first that is sent to other experts in any layer."""
    same = torch.ones(count, dtype=torch.bool)
    for left, right in zip(one, other, strict=True):
        same &= (left.sort(-1).values == right.sort(-1).values).all(-1)
    return int(same.int().cumprod(0).sum())


@settings(deadline=None, max_examples=30)
@given(fields=architectures(), length=st.integers(2, 40))
def test_bfloat16_is_as_near_to_float64_as_its_rounding_lets_it_be_and_so_is_the_peer(fields, length):
    # A kernel for grouped products takes rows of whole 16 bytes; 64 logits make a norm that is never near zero.
    fields |= {"vocab_size": 64, "hidden_size": 8 * (1 + fields["hidden_size"] // 8)}
    fields |= {"moe_intermediate_size": 8 * (1 + fields["moe_intermediate_size"] // 8)}
    model = random_model(torch.bfloat16, **fields)
    for router in model.routers:
        router.e_score_correction_bias = router.e_score_correction_bias.float()
    exact = copy.deepcopy(model).double()
    peer = peer_of(model)
    seen: list[Tensor] = []
    for module in peer.modules():
        if isinstance(module, Glm4MoeTopkRouter):
            module.register_forward_hook(lambda _module, _inputs, output: seen.append(output[2]))
    [text], inputs = documents(model, [length])
    with torch.no_grad():
        output, reference = model(*inputs), exact(*inputs)
        expected = exact.logits(reference.hidden)
        ours, theirs = model.logits(output.hidden), peer(text[None]).logits[0]

    # The choice of experts is a step: where rounding moves a token over it, two right answers have nothing in common. A
    # token sees those before it, so what is compared ends before the first that takes such a step.
    routed = [routing.expert for routing in reference.routings]
    count = min(same_experts([r.expert for r in output.routings], routed, length), same_experts(seen, routed, length))
    assume(count > 0)
    ours, theirs, expected = ours[:count], theirs[:count], expected[:count]
    # A value is rounded to bfloat16, by up to u = 2^-8 of itself, some 20 times on its way through a layer (norms 2 x 2,
    # projection, query norm 2, rotation 3, attention 2, output, two sums, gate, silu, product, down, weighting, mixing)
    # and some 3 times around the layers. Such errors are independent and add up in squares, to u sqrt(20 L + 3); softmax,
    # router and the growth of the stream turn them into up to 4 times as much. That is 0.07 for one layer and 0.12 for
    # three; measured over 150 draws were at most 0.034.
    bound = 4 * 2**-8 * (20 * model.config.num_hidden_layers + 3) ** 0.5
    assert relative(ours, expected) < bound
    assert relative(theirs, expected) < bound
    # What is wrong is above the bound, by far.
    assert relative(torch.zeros_like(ours), expected) > 5 * bound
    assert relative(ours.roll(1, dims=1), expected) > 5 * bound
    if relative(expected.roll(1, dims=0), expected) > 3 * bound:  # unless neighbouring tokens are alike
        assert relative(ours.roll(1, dims=0), expected) > 2 * bound


def logits_of(model: Glm, text: Tensor) -> Tensor:
    _, (_, positions, layout) = documents(model, [len(text)])
    return model.logits(model(text, positions, layout).hidden)


TEXT = torch.arange(20) * 7 % 64


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_qk_norm": False, "attention_bias": False, "tie_word_embeddings": True},
        {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 2, "n_shared_experts": 2, "norm_topk_prob": False},
    ],
)
def test_what_we_save_transformers_loads(tmp_path, fields):
    random_model(torch.float32, **fields).save_pretrained(tmp_path / "model")
    model = Glm.from_pretrained(tmp_path / "model", dtype=torch.float64)
    peer, report = transformers.Glm4MoeForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float64, experts_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert all(name.startswith("model.layers.3.") for name in report["unexpected_keys"])  # of the MTP layer
    with torch.no_grad(), in_float64():
        assert_close(logits_of(model, TEXT), peer(TEXT[None]).logits[0], "logits")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("fields", [{}, {"use_qk_norm": False, "tie_word_embeddings": True}])
def test_what_transformers_saves_we_load(tmp_path, fused, fields):
    model = random_model(torch.float64, num_nextn_predict_layers=0, **fields)
    peer_of(model).save_pretrained(tmp_path, save_original_format=not fused, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert ("gate_up_proj" in (tmp_path / "model.safetensors.index.json").read_text()) == fused
    loaded = Glm.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.config == model.config.model_copy(update={"pad_token_id": loaded.config.pad_token_id})
    with torch.no_grad():
        assert_close(logits_of(loaded, TEXT), logits_of(model, TEXT), "logits")


def test_transformers_drafts_with_the_mtp_layer_that_we_save(tmp_path):
    # It looks for the MTP layer behind layer 45 or 91 alone.
    sizes = {"num_hidden_layers": 46, "first_k_dense_replace": 45, "hidden_size": 16, "intermediate_size": 8}
    random_model(torch.float32, **sizes).save_pretrained(tmp_path / "model")
    model = Glm.from_pretrained(tmp_path / "model", dtype=torch.float64)
    peer = transformers.Glm4MoeForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float64, experts_implementation="eager"
    )
    mtp = MtpModel.from_pretrained(peer)
    _, (_, positions, layout) = documents(model, [len(TEXT)])
    with torch.no_grad(), in_float64():
        expected = model.logits(model(TEXT, positions, layout, with_mtp=True).mtp_hidden)[:-1]
        hidden = peer.model(TEXT[None]).last_hidden_state[:, :-1]
        following = TEXT[None, 1:]
        state = mtp.forward_layer(0, hidden, positions[None, :-1], None, input_ids=following)
        assert_close(mtp._project_to_logits(state)[0], expected, "MTP logits")

        cache = MtpCache(config=mtp.config)
        drafted, logits, _ = mtp(following, hidden, None, positions[None, 1:], cache)
    # By itself it counts positions from the next token. Attention sees differences of positions alone, so that changes
    # nothing but the rounding of the angles to float32, by 2^-24 of some 20.
    torch.testing.assert_close(logits[0, 0], expected[-1], rtol=0, atol=1e-4)
    assert int(drafted) == int(expected[-1].argmax())
