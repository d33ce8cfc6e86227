"""Samples that share prefixes: the same losses and gradients as the samples one by one."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import TINY, random_model
from torch.nn.attention.flex_attention import create_mask

from glmcore.errors import PackingError
from glmcore.model.layout import DocumentLayout
from glmcore.model.moe import expert_load, sequence_balance_loss
from glmcore.model.tree import TreeLayout, tree_mask
from glmcore.model.tree_attention import attend_along_padded_paths, attend_along_paths
from glmcore.prefixes import PrefixForest, group_by_prefix, share_prefixes
from glmcore.train.loss import linear_cross_entropy
from glmcore.train.tree import routing_of_samples, tree_cross_entropy, tree_logprobs, tree_mtp_cross_entropy


@dataclass
class Samples:
    ids: np.ndarray
    offsets: np.ndarray


def samples_of(rows: list[list[int]]) -> Samples:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    return Samples(np.concatenate([*rows, []]).astype(np.int32), offsets)


def branching(seed: int, num_samples: int, max_new: int = 40) -> list[list[int]]:
    """Samples that each go on from some place of an earlier one, or begin anew."""
    generator = np.random.default_rng(seed)
    rows: list[list[int]] = []
    for _ in range(num_samples):
        before = rows[generator.integers(len(rows))] if rows and generator.random() < 0.8 else []
        kept = before[: generator.integers(len(before) + 1)]
        rows.append([*kept, *generator.integers(0, TINY["vocab_size"], generator.integers(1, max_new)).tolist()])
    return rows


def unshared(model, rows, weights):
    """Loss, MTP loss, log-probabilities and routings of the samples, one document each."""
    samples = samples_of(rows)
    ids = torch.from_numpy(samples.ids).long()
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    output = model(ids, positions, DocumentLayout.from_cu_seqlens(samples.offsets), with_mtp=True)
    ahead = {}
    for distance in (1, 2):  # labels so many tokens ahead, within the sample
        place = [t for start, end in zip(samples.offsets, samples.offsets[1:], strict=False) for t in range(start, end)]
        inside = [
            t
            for t in place
            if any(s <= t and t + distance < e for s, e in zip(samples.offsets, samples.offsets[1:], strict=False))
        ]
        ahead[distance] = torch.tensor(inside, dtype=torch.int64)
    head = model.lm_head.weight
    target = torch.from_numpy(weights)
    losses = []
    for distance, hidden in ((1, output.hidden), (2, output.mtp_hidden)):
        at = ahead[distance]
        logprobs = (hidden[at] @ head.T).log_softmax(-1).gather(1, ids[at + distance, None]).squeeze(1)
        losses.append(-(logprobs * target[at + distance]).sum())
        if distance == 1:
            all_logprobs = torch.zeros(len(ids), dtype=logprobs.dtype).index_copy(0, at + 1, logprobs)
    return losses, all_logprobs, output.routings, torch.tensor([len(row) for row in rows])


def shared(model, rows, weights):
    """The same of the forest."""
    forest = share_prefixes(samples_of(rows))
    layout = TreeLayout.from_forest(forest)
    ids, positions = torch.from_numpy(forest.input_ids).long(), torch.from_numpy(forest.position_ids).long()
    output = model(ids, positions, layout, with_mtp=True)
    head = model.lm_head.weight
    token_weights = torch.from_numpy(forest.sum_over_samples(weights))
    losses = [
        tree_cross_entropy(output.hidden, head, ids, layout, token_weights),
        tree_mtp_cross_entropy(output.mtp_hidden, head, ids, layout, token_weights),
    ]
    logprobs = tree_logprobs(model.logits(output.hidden), ids, layout)[torch.from_numpy(forest.place).long()]
    return losses, logprobs, output.routings, forest


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32), num_samples=st.integers(1, 8))
def test_losses_and_gradients_of_a_forest_equal_those_of_its_samples(seed, num_samples):
    model = random_model()
    rows = branching(seed, num_samples)
    num_tokens = sum(len(row) for row in rows)
    weights = np.random.default_rng(seed).random(num_tokens) * (
        np.random.default_rng(seed + 1).random(num_tokens) < 0.7
    )
    losses, logprobs, routings, lengths = unshared(model, rows, weights)
    tree_losses, tree_probs, tree_routings, forest = shared(model, rows, weights)
    # Float64 sums in another order: the values are of order 100, the sums of some hundred terms.
    for one, other in zip(tree_losses, losses, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(tree_probs, logprobs, rtol=1e-10, atol=1e-11)
    policy = (logprobs.exp() * torch.from_numpy(weights)).sum()  # something that is not linear in them
    tree_policy = (tree_probs.exp() * torch.from_numpy(weights)).sum()
    balance = sum(sequence_balance_loss(routing, lengths) for routing in routings[:-1])
    tree_balance = sum(
        sequence_balance_loss(routing_of_samples(routing, forest), lengths) for routing in tree_routings[:-1]
    )
    torch.testing.assert_close(tree_balance, balance, rtol=1e-10, atol=1e-11)
    for routing, tree_routing in zip(routings[:-1], tree_routings[:-1], strict=True):
        assert torch.equal(expert_load(routing), expert_load(routing_of_samples(tree_routing, forest)))
    total = losses[0] + 0.3 * losses[1] + policy + balance
    tree_total = tree_losses[0] + 0.3 * tree_losses[1] + tree_policy + tree_balance
    expected = gradients(model, total)
    found = gradients(model, tree_total)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(
            found[name], grad, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert any(grad.abs().max() > 1e-3 for grad in expected.values())


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), num_samples=st.integers(0, 8), heads=st.sampled_from([(1, 1), (4, 2)]))
def test_attention_over_runs_is_that_over_padded_paths_with_its_gradients(seed, num_samples, heads):
    layout = TreeLayout.from_forest(share_prefixes(samples_of(branching(seed, num_samples))))
    random = torch.Generator().manual_seed(seed)
    num_tokens = len(layout.parent)
    parts = [torch.randn(num_tokens, count, 8, generator=random, dtype=torch.float64) for count in (*heads, heads[1])]
    found, expected = [], []
    for attend, into in ((attend_along_paths, found), (attend_along_padded_paths, expected)):
        inputs = [part.clone().requires_grad_() for part in parts]
        if num_tokens:
            out = attend(*inputs, layout)
            out.sin().sum().backward()
            into += [out.detach(), *(part.grad for part in inputs)]
    # Float64 sums of at most some dozens of terms of order 1 in another order.
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), num_samples=st.integers(1, 10))
def test_the_masks_of_both_attention_paths_are_the_paths_to_the_roots(seed, num_samples):
    forest = share_prefixes(samples_of(branching(seed, num_samples, max_new=8)))
    num_tokens = len(forest.input_ids)
    expected = np.zeros((num_tokens, num_tokens), np.bool_)
    for token in range(num_tokens):
        seen = token
        while seen >= 0:
            expected[token, seen] = True
            seen = forest.parent[seen]
    mask_mod = tree_mask(torch.from_numpy(forest.subtree_end))
    flex = create_mask(mask_mod, 1, 1, num_tokens, num_tokens, device="cpu")[0, 0].bool()
    np.testing.assert_array_equal(flex.numpy(), expected)

    layout = TreeLayout.from_forest(forest)
    found = np.zeros_like(expected)
    for bucket in layout.buckets:
        for run in range(bucket.num_runs):
            for query in range(bucket.num_queries):
                slot = bucket.query_start + run * bucket.num_queries + query
                if not layout.slot_is_padding[slot]:
                    first = bucket.key_start + run * bucket.num_keys
                    keys = layout.key_token[first : first + bucket.num_keys]
                    visible = bucket.visible[run, 0, query]
                    assert len(keys[visible].unique()) == int(visible.sum())
                    found[int(layout.query_token[slot]), keys[visible].numpy()] = True
    np.testing.assert_array_equal(found, expected)


def test_a_group_of_rollouts_saves_its_prompt_for_all_but_one():
    prompt = list(range(50))
    rows = [[*prompt, 50 + i, *range(10)] for i in range(8)]
    forest = share_prefixes(samples_of(rows))
    assert forest.num_saved_tokens == 7 * 50
    np.testing.assert_array_equal(forest.sum_over_samples(np.ones(8 * 61))[:50], 8)
    packing = group_by_prefix(samples_of(rows), 50 + 4 * 11)
    assert packing.num_rows == 2
    sizes = [
        len(share_prefixes(samples_of([rows[i] for i in np.flatnonzero(packing.row_of == row)])).input_ids)
        for row in (0, 1)
    ]
    assert sizes == [94, 94]


def test_equal_samples_prefixes_of_others_and_empty_ones_are_kept_apart_only_by_weight():
    rows = [[1, 2, 3], [1, 2, 3], [1, 2], [], [4]]
    forest = share_prefixes(samples_of(rows))
    np.testing.assert_array_equal(forest.input_ids, [1, 2, 3, 4])
    np.testing.assert_array_equal(forest.sum_over_samples(np.ones(9)), [3, 3, 2, 1])
    assert share_prefixes(samples_of([])) is not None
    model = random_model()
    layout = TreeLayout.from_forest(forest)
    ids, positions = torch.from_numpy(forest.input_ids).long(), torch.from_numpy(forest.position_ids).long()
    assert model(ids, positions, layout).hidden.isfinite().all()


def test_what_a_forest_cannot_do_is_said():
    with pytest.raises(PackingError, match="document 0 has 2 tokens, more than the row capacity of 1"):
        group_by_prefix(samples_of([[1, 2]]), 1)
    with pytest.raises(PackingError, match="ids must be a 1-D int32 array"):
        share_prefixes(Samples(np.zeros(2), np.array([0, 2])))


def test_weights_of_a_loss_scale_it_and_its_gradients():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (700,), generator=generator)
    weights = torch.rand(700, generator=generator, dtype=torch.float64)
    losses = torch.nn.functional.cross_entropy(hidden @ head.T, labels, reduction="none")
    expected = torch.autograd.grad((losses * weights).sum(), (hidden, head))
    loss = linear_cross_entropy(hidden, head, labels, weights)
    torch.testing.assert_close(loss, (losses * weights).sum())
    for found, grad in zip(torch.autograd.grad(loss, (hidden, head)), expected, strict=True):
        torch.testing.assert_close(found, grad)


def test_a_forest_of_one_sample_is_a_document():
    forest = share_prefixes(samples_of([[3, 1, 2]]))
    assert isinstance(forest, PrefixForest)
    np.testing.assert_array_equal(forest.parent, [-1, 0, 1])
    np.testing.assert_array_equal(forest.subtree_end, [3, 3, 3])
