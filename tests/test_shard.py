"""Models spread over ranks train as in one process."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from distributed import run_ranks
from sharded import train, train_all

from glmcore.errors import ConfigError
from glmcore.model.config import GlmConfig
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.expert import check_expert_split
from glmcore.model.parallel.tensor import check_tensor_split

Result = tuple[list[tuple[float, float, float]], dict[str, np.ndarray]]
Case = tuple[dict[str, int], dict[str, Any]]

WIDE = {"dtype": torch.float64, "num_rows": 4, "num_steps": 2, "num_hidden_layers": 2}
DENSE = {"first_k_dense_replace": 2, "num_nextn_predict_layers": 0}
PLAIN = {"use_qk_norm": False, "attention_bias": False, "tie_word_embeddings": True}
GROUPED = {"n_group": 4, "topk_group": 2, "n_shared_experts": 2, "norm_topk_prob": False}


def assert_equal(ranks: list[Result], alone: Result) -> None:
    """All ranks tell the same, and what one process tells, up to the order of float64 sums.

    A sum over ranks adds the same numbers in another order: a gradient of n terms moves by n 2**-53 of their size, some
    1e-13 here, and Newton-Schulz raises its relative error by less than 1e3. Weights are of the order of 1e-2 to 1.
    """
    figures, weights = alone
    for other_figures, other_weights in ranks:
        np.testing.assert_array_equal(other_figures, ranks[0][0])
        np.testing.assert_allclose(other_figures, figures, rtol=1e-12)
        assert other_weights.keys() == weights.keys()
        for name, weight in weights.items():
            np.testing.assert_array_equal(other_weights[name], ranks[0][1][name], err_msg=name)
            np.testing.assert_allclose(other_weights[name], weight, rtol=0, atol=1e-12, err_msg=name)


def check(num_ranks: int, cases: list[Case]) -> None:
    results = run_ranks(num_ranks, train_all, cases, timeout=150)
    known: dict[str, Result] = {}
    for index, (_, arguments) in enumerate(cases):
        key = repr(arguments)
        if key not in known:
            known[key] = train(0, {}, **arguments)
        assert_equal([rank[index] for rank in results], known[key])


def test_data_ranks_with_one_row_each_give_the_bits_of_one_process():
    cases: list[Case] = [
        ({"data": 2}, {}),
        ({"data": 2}, {"matrices": "adamw", **PLAIN}),
        ({"data": 2, "replicas": 2}, {}),
    ]
    for (_, arguments), *ranks in zip(cases, *run_ranks(2, train_all, cases), strict=True):
        figures, weights = train(0, {}, **arguments)
        for rank_figures, rank_weights in ranks:
            losses, rank_losses = np.array(figures)[:, :2], np.array(rank_figures)[:, :2]
            np.testing.assert_array_equal(rank_losses, losses)
            for name, weight in weights.items():
                np.testing.assert_array_equal(rank_weights[name], weight, err_msg=name)


def test_the_norm_of_gradients_over_ranks_clips_as_in_one_process():
    ranks = run_ranks(2, train, {"data": 2}, max_grad_norm=0.5)
    figures, weights = train(0, {}, max_grad_norm=0.5)
    assert min(norm for *_, norm in figures) > 1  # clipping is at work
    # The squares are added up in another order, which moves the norm, and with it every gradient, by some 1e-7; a
    # weight then moves by that share of its update of at most 1e-2 a step.
    np.testing.assert_allclose(ranks[0][0], figures, rtol=1e-6)
    for name, weight in weights.items():
        np.testing.assert_allclose(ranks[0][1][name], weight, rtol=0, atol=1e-6, err_msg=name)


def test_two_ranks_of_every_kind_train_every_kind_of_model_as_one_process_does():
    layouts = [{"tensor": 2}, {"data": 2, "expert": 2}]
    models = [{}, DENSE, PLAIN, GROUPED]
    check(2, [(layout, {**WIDE, **model}) for layout in layouts for model in models])


def test_four_ranks_of_every_product_train_as_one_process_does():
    layouts = [
        {"data": 4},
        {"data": 4, "replicas": 2},
        {"data": 4, "expert": 2},
        {"data": 4, "expert": 4},
        {"data": 4, "replicas": 2, "expert": 2},
        {"data": 2, "tensor": 2},
        {"data": 2, "replicas": 2, "tensor": 2},
        {"data": 2, "tensor": 2, "expert": 2},
    ]
    uneven = ({"data": 4, "expert": 2}, {**WIDE, "n_routed_experts": 6, "vocab_size": 66})
    narrow = ({"tensor": 4}, {**WIDE, "num_key_value_heads": 4})
    check(4, [*((layout, WIDE) for layout in layouts), uneven, narrow])


def test_bfloat16_on_two_ranks_gives_the_bits_of_one_process_and_learns_about_as_float32_does():
    low = {"compute": "bfloat16"}
    ranks = run_ranks(2, train_all, [({"data": 2}, low), ({"data": 2, "expert": 2}, low), ({"tensor": 2}, low)])
    ((figures, weights),) = run_ranks(1, train, {}, **low)
    wide = train(0, {})[0]

    assert all(weight.dtype == np.float32 for weight in weights.values())
    np.testing.assert_array_equal(np.array(ranks[0][0][0])[:, :2], np.array(figures)[:, :2])
    for name, weight in weights.items():
        np.testing.assert_array_equal(ranks[0][0][1][name], weight, err_msg=name)
    # Activations are rounded to 8 bits some 20 times on the way to a loss, which moves its mean over 92 tokens by less
    # than one such rounding, 2**-9 of its size.
    for layout in ranks[0]:
        np.testing.assert_allclose(np.array(layout[0])[:, :2], np.array(wide)[:, :2], rtol=2**-9)


def test_computing_activations_again_gives_the_same_bits_on_ranks():
    layout = {"data": 2, "expert": 2}
    cases = [(layout, {"checkpointing": mode}) for mode in ("none", "selective", "full")]
    kept, *again = run_ranks(2, train_all, cases)[0]
    for figures, weights in again:
        assert figures == kept[0]
        for name, weight in kept[1].items():
            np.testing.assert_array_equal(weights[name], weight, err_msg=name)


@pytest.mark.parametrize(
    ("tensor", "fields", "name"),
    [
        (4, {}, "num_key_value_heads=2"),
        (2, {"num_attention_heads": 3, "num_key_value_heads": 1}, "num_attention_heads=3"),
        (2, {"intermediate_size": 49}, "intermediate_size=49"),
        (2, {"moe_intermediate_size": 15}, "moe_intermediate_size"),
        (2, {"vocab_size": 65}, "vocab_size=65"),
    ],
)
def test_what_tensor_ranks_do_not_divide_is_refused_by_name(tensor, fields, name):
    with pytest.raises(ConfigError, match=name):
        check_tensor_split(GlmConfig(**{**TINY, **fields}), tensor)


def test_experts_that_the_ranks_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"2 \* 8 must divide model.n_routed_experts=8"):
        check_expert_split(GlmConfig(**TINY), 2, 8)
    with pytest.raises(ConfigError, match="expert=4 must divide"):
        ParallelConfig.from_dict({"data": 4, "replicas": 2, "expert": 4}, origin="test")
    with pytest.raises(ConfigError, match="replicas=3 must divide"):
        ParallelConfig.from_dict({"data": 4, "replicas": 3}, origin="test")
