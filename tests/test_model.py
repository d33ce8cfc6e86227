import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from glmcore.errors import ConfigError
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.layout import BUCKET, DocumentLayout
from glmcore.model.moe import Router, grouped_linear, sequence_balance_loss, update_correction_bias
from glmcore.model.paged import PagedCache, PagedLayout


def random_model(dtype: torch.dtype = torch.float64, **fields: object) -> Glm:
    """A tiny model whose norms, biases and correction biases are random too, so that none can be left out."""
    model = Glm(GlmConfig(**{**TINY, **fields})).init_weights(seed=1).to(dtype)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(dtype), alpha=0.2)
            else:
                parameter.mul_(8)  # the initial scale leaves logits near zero
            assert name
        for router in model.routers:
            bias = torch.randn(len(router.e_score_correction_bias), generator=generator)
            router.e_score_correction_bias = 0.1 * bias.to(dtype)
    return model


def packed(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, DocumentLayout]:
    ids = torch.randint(0, TINY["vocab_size"], (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([torch.arange(length) for length in lengths])
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return ids, positions, DocumentLayout.from_cu_seqlens(cu_seqlens)


@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(1, 2 * BUCKET + 3), min_size=1, max_size=6))
def test_packed_documents_are_as_if_alone(lengths):
    model = random_model()
    ids, positions, layout = packed(lengths)
    together = model(ids, positions, layout, with_mtp=True)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        alone = model(ids[rows], positions[rows], packed([length])[2], with_mtp=True)
        # Products of few and of many rows may be summed in another order; attention itself is bit-equal.
        torch.testing.assert_close(together.hidden[rows], alone.hidden, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(together.mtp_hidden[rows], alone.mtp_hidden, rtol=1e-12, atol=1e-13)
        start += length


@settings(deadline=None, max_examples=10)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), steps=st.integers(1, 5))
def test_cached_decoding_equals_a_full_forward_pass(lengths, steps):
    model = random_model()
    ids, _, _ = packed(lengths)
    documents = [document.tolist() for document in ids.split(lengths)]
    blocks = 3  # enough for 40 + 5 tokens
    caches = [PagedCache.empty(model.config, blocks * len(lengths), ids.double()) for _ in model.decoder_layers]
    tables = np.random.default_rng(0).permutation(blocks * len(lengths)).reshape(-1, blocks).astype(np.int32)
    counts = lengths
    for _ in range(steps + 1):
        bounds = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        totals = np.array([len(document) for document in documents], np.int32)
        layout = PagedLayout(bounds, totals, tables)
        new = [token for document, count in zip(documents, counts, strict=True) for token in document[-count:]]
        hidden = model(torch.tensor(new), torch.from_numpy(layout.positions), layout, caches=caches).hidden
        last = hidden[torch.from_numpy(bounds[1:].astype(np.int64) - 1)]
        for row, document in enumerate(documents):
            full_layout = packed([len(document)])[2]
            full = model(torch.tensor(document), torch.arange(len(document)), full_layout).hidden[-1]
            torch.testing.assert_close(last[row], full, rtol=1e-11, atol=1e-12)
            document.append(int(model.logits(last[row]).argmax()))
        counts = [1] * len(lengths)


def test_no_token_sees_the_future_or_another_document():
    model = random_model()
    ids, positions, layout = packed([40, 9])
    before = model(ids, positions, layout).hidden
    changed = ids.clone()
    changed[20] = (changed[20] + 1) % TINY["vocab_size"]
    after = model(changed, positions, layout).hidden
    # To rounding, not to the bit: the changed token goes to other experts, and on some processors the sums of a matrix
    # product depend on the number of its rows. Whatever is seen moves values by far more.
    torch.testing.assert_close(before[:20], after[:20], rtol=0, atol=1e-13)
    torch.testing.assert_close(before[40:], after[40:], rtol=0, atol=1e-13)
    assert (before[20:40] - after[20:40]).abs().amax(-1).min() > 1e-6


def test_gradients_agree_with_finite_differences():
    model = random_model(num_hidden_layers=2)
    ids, positions, layout = packed([7, 5])

    def loss() -> torch.Tensor:
        output = model(ids, positions, layout, with_mtp=True)
        return F.cross_entropy(model.logits(output.hidden), ids) + F.cross_entropy(model.logits(output.mtp_hidden), ids)

    loss().backward()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        expected = float((parameter.grad * direction).sum())
        step = 1e-6
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            up = float(loss())
            parameter.add_(direction, alpha=-2 * step)
            down = float(loss())
            parameter.add_(direction, alpha=step)
        # Central differences: truncation of order step^2, rounding of order 1e-16 / step.
        assert (up - down) / (2 * step) == pytest.approx(expected, rel=1e-4, abs=1e-7), name


def test_grouped_products_equal_a_product_per_expert():
    rows, weight = torch.randn(24, 32), torch.randn(4, 16, 32)
    ends = torch.tensor([5, 5, 20, 24], dtype=torch.int32)  # the second expert has no row
    fast = grouped_linear(rows, weight, ends)
    plain = grouped_linear(rows.double(), weight.double(), ends)
    # A dot product of 32 float32 terms of size about 1: 32 * 2^-24 * |terms| is below 1e-5.
    torch.testing.assert_close(fast.double(), plain, rtol=0, atol=2e-5)


def test_the_router_uses_the_bias_to_choose_and_not_to_weigh():
    router = Router(GlmConfig(**TINY))
    torch.nn.init.normal_(router.weight)
    x = torch.randn(10, TINY["hidden_size"])
    free = router(x)
    router.e_score_correction_bias[3] = 10.0
    pushed = router(x)
    assert bool((pushed.expert == 3).any(-1).all())
    assert torch.equal(free.scores, pushed.scores)
    picked = pushed.scores.gather(1, pushed.expert)
    torch.testing.assert_close(pushed.weight, picked / picked.sum(-1, keepdim=True) * 2.5)


def test_groups_limit_the_choice():
    router = Router(GlmConfig(**{**TINY, "n_group": 4, "topk_group": 1}))
    torch.nn.init.normal_(router.weight)
    expert = router(torch.randn(50, TINY["hidden_size"])).expert
    assert bool((expert[:, 0] // 2 == expert[:, 1] // 2).all())


def test_the_correction_bias_moves_against_the_load():
    router = Router(GlmConfig(**TINY))
    load = torch.tensor([9, 1, 5, 5, 5, 5, 5, 5])
    update_correction_bias(router, load, rate=0.001)
    torch.testing.assert_close(router.e_score_correction_bias, torch.tensor([-0.001, 0.001, 0, 0, 0, 0, 0, 0]))


def test_the_balance_loss_is_one_when_even_and_grows_when_not():
    router = Router(GlmConfig(**TINY))
    torch.nn.init.zeros_(router.weight)
    with torch.no_grad():
        even = router(torch.randn(8, TINY["hidden_size"]))
    experts = torch.arange(16).view(8, 2) % 8
    lengths = torch.tensor([4, 4])
    balanced = type(even)(experts, even.weight, even.scores)
    assert float(sequence_balance_loss(balanced, lengths)) == pytest.approx(1.0)
    skewed_scores = even.scores.clone()
    skewed_scores[:, 0] += 3
    skewed = type(even)(torch.tensor([[0, 1]] * 8), even.weight, skewed_scores)
    assert float(sequence_balance_loss(skewed, lengths)) > 1.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_key_value_heads": 3}, "multiple of"),
        ({"num_experts_per_tok": 9}, "exceeds"),
        ({"partial_rotary_factor": 0.05}, "rotated channels"),
        ({"hidden_sise": 4}, "unknown key 'hidden_sise'"),
    ],
)
def test_a_wrong_model_section_names_the_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        GlmConfig.from_dict({**TINY, **fields}, origin="model")


def test_the_packages_entry_points_are_callable_and_load_no_torch_by_themselves():
    import subprocess
    import sys

    check = (
        "import sys, glmcore.train, glmcore.rl; assert callable(glmcore.train.run) and callable(glmcore.rl.run);"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0
