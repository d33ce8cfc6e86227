"""Context parallelism: even shares of the work, and the results of one process from several."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ALONE, TINY
from context_ranks import everything, gradients_of_step, logits_of, packed, random_model, saved_bytes
from distributed import run_ranks
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oracles import attention as oracle
from sharded import train, train_all

from glmcore.errors import ConfigError
from glmcore.model.parallel.share import BLOCK, share_tokens
from glmcore.model.runs import Runs, attend, attend_backward
from glmcore.train.schedule import LossWeights

SHORT_AND_LONG = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 3000)), min_size=1, max_size=40)


def bounds_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)


def filled(lengths: list[int], multiple: int) -> list[int]:
    """The lengths and a last document that makes their sum a multiple of something, as the padding of a row does."""
    missing = -sum(lengths) % multiple
    return [*lengths, missing] if missing else lengths


def visible_keys(tokens: np.ndarray, bounds: np.ndarray) -> int:
    """Keys that some tokens of a batch see, summed."""
    document = np.searchsorted(bounds, tokens, side="right") - 1
    return int((tokens - bounds[document] + 1).sum())


@settings(deadline=None, max_examples=150)
@given(lengths=SHORT_AND_LONG, num_ranks=st.integers(1, 9))
def test_every_token_has_one_rank_and_all_ranks_have_as_many(lengths, num_ranks):
    bounds = bounds_of(filled(lengths, num_ranks))
    shares = share_tokens(bounds, num_ranks)
    np.testing.assert_array_equal(np.sort(np.concatenate([share.tokens for share in shares])), np.arange(bounds[-1]))
    for share in shares:
        assert len(share.tokens) == bounds[-1] // num_ranks
        assert (np.diff(share.tokens) > 0).all()
        assert (bounds[share.document] <= share.starts).all()
        assert (share.starts < share.ends).all()
        assert (share.ends <= bounds[share.document + 1]).all()
        assert np.bincount(share.document).max() <= 2


@settings(deadline=None, max_examples=150)
@given(lengths=SHORT_AND_LONG, num_ranks=st.integers(1, 9))
def test_no_rank_sees_more_keys_than_another_by_more_than_the_stated_bound(lengths, num_ranks):
    lengths = filled(lengths, num_ranks)
    bounds = bounds_of(lengths)
    shares = share_tokens(bounds, num_ranks)
    work = [visible_keys(share.tokens, bounds) for share in shares]
    held_by = np.bincount(np.concatenate([np.unique(share.document) for share in shares]), minlength=len(lengths))
    cut = sum(length - 1 for length, ranks in zip(lengths, held_by, strict=True) if ranks > 1)
    assert max(work) - min(work) <= BLOCK * (max(lengths) - min(lengths)) / 2 + cut


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_a_long_document_is_shared_as_chunks_from_both_ends(num_ranks):
    chunk = 3 * BLOCK
    chunks = np.arange(2 * num_ranks * chunk).reshape(2 * num_ranks, chunk)
    shares = share_tokens(bounds_of([chunks.size]), num_ranks)
    for rank, share in enumerate(shares):
        np.testing.assert_array_equal(share.tokens, np.concatenate((chunks[rank], chunks[-1 - rank])))


def test_work_is_even_to_two_percent_where_chunks_of_the_row_leave_most_of_it_to_one_rank():
    num_tokens, num_ranks = 32_768, 8
    generator = np.random.default_rng(0)
    for _ in range(10):
        lengths = np.minimum(generator.lognormal(6.4, 1.2, 200).astype(int) + 1, num_tokens)
        lengths = lengths[np.cumsum(lengths) < num_tokens]
        bounds = bounds_of([*lengths, num_tokens - lengths.sum()])
        mean = visible_keys(np.arange(num_tokens), bounds) / num_ranks
        work = [visible_keys(share.tokens, bounds) for share in share_tokens(bounds, num_ranks)]
        chunks = np.arange(num_tokens).reshape(2 * num_ranks, -1)
        of_chunks = [visible_keys(np.append(chunks[r], chunks[-1 - r]), bounds) for r in range(num_ranks)]
        assert max(work) < 1.02 * mean
        assert max(of_chunks) > 1.15 * mean


def test_tokens_that_cannot_be_shared_evenly_are_refused():
    with pytest.raises(ConfigError, match=r"10 tokens .* parallel\.context=4 .* make sequence_length a multiple of it"):
        share_tokens(bounds_of([10]), 4)


@settings(deadline=None, max_examples=25)
@given(
    runs=st.lists(st.tuples(st.integers(1, 70), st.integers(0, 600)), min_size=1, max_size=6),
    heads=st.sampled_from([(4, 2), (3, 1), (2, 2)]),
    seed=st.integers(0, 2**31),
)
def test_attention_of_runs_equals_the_plain_one_and_so_do_its_gradients(runs, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    num_queries = [own for own, _ in runs]
    num_keys = [own + before for own, before in runs]
    query, grad = (torch.randn(sum(num_queries), heads[0], 8, dtype=torch.float64, generator=generator) for _ in "qg")
    key, value = (torch.randn(sum(num_keys), heads[1], 8, dtype=torch.float64, generator=generator) for _ in "kv")
    inputs = [x.requires_grad_() for x in (query, key, value)]
    expected = oracle.attention_of_runs(*inputs, num_queries, num_keys)
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    with torch.no_grad():
        plan = Runs.of(np.array(num_queries), np.array(num_keys))
        mixed, log_sum = attend(*inputs, plan)
        grads = attend_backward(grad, *inputs, mixed, log_sum, plan)
    # Float64 sums of some hundred terms of order 1, in another order.
    torch.testing.assert_close(mixed, expected, rtol=1e-11, atol=1e-12)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def drawn(strategy, number: int) -> list:
    """So many values of a strategy, for processes that are started once for all of them."""
    values = []

    @settings(database=None, phases=[Phase.generate], max_examples=number, suppress_health_check=list(HealthCheck))
    @given(value=strategy)
    def draw(value):
        values.append(value)

    draw()
    return values


def cases() -> list:
    """Batches of a step and weights of its losses: documents that all ranks share, and such that lie within one."""
    all_losses = LossWeights(bias_update_rate=0.0, sequence_loss_weight=1.0)
    fixed = [[[320]], [[1, 319], [40] * 8], [[5] * 64], [[100, 3, 1, 200, 16]]]
    lengths = st.lists(st.one_of(st.integers(1, 12), st.integers(1, 300)), min_size=1, max_size=12)
    batches = fixed + [[filled(row, 8)] for row in drawn(lengths, 5)]
    made = [([packed(row, TINY["vocab_size"], seed) for seed, row in enumerate(rows)], all_losses) for rows in batches]
    return [*made, (made[1][0], replace(all_losses, mtp_loss_weight=0.0))]


CASES = cases()
LONG = packed([700, 1, 323], TINY["vocab_size"], 0)


@pytest.fixture(scope="module", params=[2, 4])
def shared(request) -> list[dict]:
    """What each of some ranks has found."""
    return run_ranks(request.param, everything, TINY, CASES, LONG, timeout=120)


def test_losses_loads_and_gradients_are_those_of_one_process(shared):
    for index, (batches, weights) in enumerate(CASES):
        alone = gradients_of_step(random_model(TINY), batches, weights, ALONE)
        for rank in shared:
            found = rank["steps"][index]
            # The same sums of up to 320 float64 terms in another order.
            assert found["loss"] == pytest.approx(alone["loss"], rel=1e-12)
            assert found["mtp_loss"] == pytest.approx(alone["mtp_loss"], rel=1e-12, nan_ok=True)
            np.testing.assert_array_equal(found["load"], alone["load"])
            assert found["grads"].keys() == alone["grads"].keys()
        largest = max(abs(grad).max() for grad in alone["grads"].values())
        for name, grad in alone["grads"].items():
            scale = max(abs(grad).max(), 1e-3 * largest)  # of one-token documents some gradients are zero
            found = shared[0]["steps"][index]["grads"][name]
            np.testing.assert_allclose(found, grad, rtol=0, atol=1e-11 * scale, err_msg=f"{name} of case {index}")


def test_logits_are_those_of_one_process(shared):
    for index, (batches, _) in enumerate(CASES):
        _, alone = logits_of(random_model(TINY), batches[0], ALONE)
        places = np.concatenate([rank["logits"][index][0] for rank in shared])
        np.testing.assert_array_equal(np.sort(places), np.arange(len(alone)))
        found = np.concatenate([rank["logits"][index][1] for rank in shared])
        np.testing.assert_allclose(found, alone[places], rtol=0, atol=1e-11 * abs(alone).max())


def test_what_is_kept_for_the_backward_pass_is_shared_out_evenly(shared):
    alone = saved_bytes(random_model(TINY), LONG, ALONE)
    kept = [rank["saved_bytes"] for rank in shared]
    assert max(kept) < 1.02 * min(kept)
    assert max(kept) < 1.05 * alone / len(shared)  # 5 % for the plan, which has an entry for each key that a run sees


def test_attention_in_bfloat16_rounds_no_more_than_one_kernel_does(shared):
    # Inputs are exact. Shares of keys, results and their two parts are rounded to 2^-9 of themselves at most, and so
    # are the gradients' inner products; errors of many terms partly cancel, so 2^-7 of the norm is generous.
    for rank in shared:
        assert max(rank["bfloat16"]) < 2**-7
        assert max(rank["bfloat16"]) > 2**-12


def test_activation_checkpointing_changes_no_bit(shared):
    assert all(rank["checkpointed"] == [True, True] for rank in shared)


def test_torch_finds_no_fault_in_the_operator_and_compiles_it_whole(shared):
    assert all(rank["operator"] == (True, True) for rank in shared)


PRODUCTS = [
    {"context": 4},
    {"context": 4, "expert": 2},
    {"context": 2, "data": 2, "replicas": 2},
    {"context": 2, "data": 2, "expert": 4},
    {"context": 2, "tensor": 2, "expert": 2},
    {"context": 2, "pipeline": 2},
]


def test_every_product_with_other_ways_to_share_a_model_trains_as_one_process_does():
    arguments = {"dtype": torch.float64, "num_steps": 2}
    figures, weights = train(0, {}, **arguments)
    of_ranks = run_ranks(4, train_all, [(layout, arguments) for layout in PRODUCTS], timeout=150)
    for layout, *ranks in zip(PRODUCTS, *of_ranks, strict=True):
        assert set().union(*(held for _, held in ranks)) == set(weights), layout
        for found, held in ranks:
            # Sums of some hundred float64 terms in another order, and Newton-Schulz, which raises their relative
            # errors less than a thousandfold. Weights are of the order of 1e-2 to 1.
            np.testing.assert_allclose(found, figures, rtol=1e-12, err_msg=str(layout))
            for name, weight in held.items():
                np.testing.assert_allclose(weight, weights[name], rtol=0, atol=1e-12, err_msg=f"{name} of {layout}")
