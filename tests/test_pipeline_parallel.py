"""Pipelines of gloo processes against one process that holds the whole model, and what they are made of."""

import re
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ALONE, TINY, batch_of
from distributed import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_runs import Case, Trace, odd_steps, train, train_all, train_with_another_split

from glmcore.config import Config
from glmcore.errors import CheckpointError, ConfigError
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.split import StagePart, balanced_counts, split_layers
from glmcore.model.parallel.stage import GlmPart, GlmStage, attach_loss
from glmcore.train.checkpoint import load_weights
from glmcore.train.config import TrainConfig
from glmcore.train.objective import Objective
from glmcore.train.schedule import LossWeights, TrainPlan

EMBEDDING = "model.embed_tokens.weight"


def parallel(**fields: object) -> ParallelConfig:
    return ParallelConfig.from_dict(fields, origin="parallel")


def assert_same_bits(traces: list[Trace], alone: Trace) -> None:
    for trace in traces:
        np.testing.assert_array_equal(np.array(trace.losses)[:, :2], np.array(alone.losses)[:, :2])
        assert trace.validation == alone.validation
        for load, expected in zip(trace.loads, alone.loads, strict=True):
            np.testing.assert_array_equal(load, expected)
        for name, weight in trace.weights.items():
            np.testing.assert_array_equal(weight, alone.weights[name], err_msg=name)


def assert_close(traces: list[Trace], alone: Trace, tolerance: float) -> None:
    for trace in traces:
        np.testing.assert_allclose(trace.losses, alone.losses, rtol=tolerance)
        np.testing.assert_allclose(trace.validation, alone.validation, rtol=tolerance)
        for load, expected in zip(trace.loads, alone.loads, strict=True):
            np.testing.assert_array_equal(load, expected)
        for name, weight in trace.weights.items():
            np.testing.assert_allclose(weight, alone.weights[name], rtol=0, atol=tolerance, err_msg=name)


def assert_complete(traces: list[Trace], alone: Trace) -> None:
    """Together the ranks hold everything, and only the embedding twice, alike to the bit."""
    names = [name for trace in traces for name in trace.weights]
    assert set(names) == set(alone.weights)
    assert {name for name in names if names.count(name) > 1} <= {EMBEDDING}
    copies = [trace.weights[EMBEDDING] for trace in traces if EMBEDDING in trace.weights]
    for copy in copies:
        np.testing.assert_array_equal(copy, copies[0])


WITHOUT_MTP = {"num_nextn_predict_layers": 0}
FLOAT32 = Case({}, WITHOUT_MTP, dtype=torch.float32)
SAME_BITS = [
    replace(FLOAT32, parallel={"pipeline": 2}),
    # One micro-batch: the two gradients of a tied embedding are added as in one process, one to the other.
    replace(
        FLOAT32,
        parallel={"pipeline": 2, "pipeline_schedule": "gpipe", "pipeline_layers": [1, 2]},
        model=WITHOUT_MTP | {"tie_word_embeddings": True},
        num_micro_batches=1,
    ),
    replace(
        FLOAT32,
        parallel={"pipeline": 2, "pipeline_schedule": "interleaved", "stages_per_rank": 2},
        model={"num_hidden_layers": 5},
        weights=LossWeights(mtp_loss_weight=0.0),
        checkpointing="full",
    ),
]
# With multi-token prediction the gradients of the embedding of all micro-batches are added up on each of its two ranks
# first, and clipping multiplies all by a sum over ranks. In float64 that moves gradients by about 1e-16 of themselves,
# and Adam passes it on to weights as it is; two steps of Newton-Schulz and of the model itself stay below 1e-12.
TOLERANCE = 1e-12
CLOSE = Case({"pipeline": 2}, {"tie_word_embeddings": True}, max_grad_norm=0.5, num_steps=2)
LOW = Case({"data": 2}, dtype=torch.float32, compute_dtype=torch.bfloat16)
PRODUCTS = [
    replace(CLOSE, parallel={"pipeline": 4}, model={"num_hidden_layers": 4}),
    replace(CLOSE, parallel={"pipeline": 2, "data": 2}),
    replace(CLOSE, parallel={"pipeline": 2, "data": 2, "replicas": 2}),
    replace(CLOSE, parallel={"pipeline": 2, "data": 2, "expert": 2}),
    replace(CLOSE, parallel={"pipeline": 2, "tensor": 2}),
    replace(CLOSE, parallel={"pipeline": 2, "context": 2}),
    replace(
        CLOSE,
        parallel={"pipeline": 2, "data": 2, "pipeline_schedule": "interleaved", "stages_per_rank": 2},
        model={"num_hidden_layers": 5},
    ),
]


@pytest.fixture(scope="module")
def two_ranks() -> list[list[Trace]]:
    """Traces by case, then by rank."""
    return [list(traces) for traces in zip(*run_ranks(2, train_all, [*SAME_BITS, CLOSE, LOW]), strict=True)]


@pytest.fixture(scope="module")
def four_ranks() -> list[list[Trace]]:
    low = replace(LOW, parallel={"pipeline": 2, "data": 2})
    return [list(traces) for traces in zip(*run_ranks(4, train_all, [*PRODUCTS, low]), strict=True)]


@pytest.mark.parametrize("index", range(len(SAME_BITS)))
def test_losses_loads_and_weights_have_the_bits_of_one_process(two_ranks, index):
    alone = train(replace(SAME_BITS[index], parallel={}))
    assert_same_bits(two_ranks[index], alone)
    assert_complete(two_ranks[index], alone)


def test_multi_token_prediction_tied_heads_and_clipping_change_rounding_alone(two_ranks):
    alone = train(replace(CLOSE, parallel={}))
    assert alone.losses[0][2] > CLOSE.max_grad_norm
    assert_close(two_ranks[len(SAME_BITS)], alone, TOLERANCE)
    assert_complete(two_ranks[len(SAME_BITS)], alone)


@pytest.mark.parametrize("index", range(len(PRODUCTS)))
def test_more_stages_and_products_with_data_parallelism_change_rounding_alone(four_ranks, index):
    assert_close(four_ranks[index], train(replace(PRODUCTS[index], parallel={})), TOLERANCE)


def test_stages_pass_on_bfloat16_where_that_is_the_type_of_the_computation(two_ranks, four_ranks):
    # The forward pass of the first step has the bits of the run without a pipeline. After it gradients of micro-batches
    # are summed in another order and weights differ by 1e-6, which bfloat16 (8 bits) shows now and then.
    without, pipeline = two_ranks[-1][0], four_ranks[-1][0]
    assert pipeline.validation[0] == without.validation[0]
    assert pipeline.losses[0][:2] == without.losses[0][:2]
    np.testing.assert_allclose(pipeline.losses, without.losses, rtol=2**-8)


def test_a_checkpoint_of_one_split_is_gone_on_from_with_another(tmp_path):
    splits = [
        {"pipeline": 2, "pipeline_layers": [1, 3]},
        {"pipeline": 2, "pipeline_schedule": "interleaved", "stages_per_rank": 2},
        {"pipeline": 2, "pipeline_layers": [3, 1]},
    ]
    fields = {"num_hidden_layers": 4, "tie_word_embeddings": True}
    cases = [replace(FLOAT32, parallel=split, model=fields, num_micro_batches=2) for split in splits]
    traces = run_ranks(2, train_with_another_split, cases, tmp_path)
    alone = train(replace(cases[0], parallel={}, num_steps=3))
    np.testing.assert_allclose(traces[0].losses[0], alone.losses[2], rtol=1e-6)
    assert_complete(traces, alone)
    # Of the newest checkpoint, a process on its own reads the weights that the ranks have.
    whole = Glm(GlmConfig(**TINY | fields))
    load_weights(max(tmp_path.iterdir()), whole)
    for trace in traces:
        for name, weight in trace.weights.items():
            np.testing.assert_array_equal(weight, whole.state_dict()[name].numpy(), err_msg=name)


class Guide(Config):
    parallel: ParallelConfig


def test_the_guide_says_what_is_so(tmp_path):
    guide = (Path(__file__).parent.parent / "docs" / "pipeline_parallel.md").read_text()
    [recipe] = re.findall(r"```toml\n(.*?)```", guide, flags=re.DOTALL)
    [code] = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    (tmp_path / "recipe.toml").write_text(recipe)
    assert Guide.load([tmp_path / "recipe.toml"]).parallel.num_ranks == 8
    names: dict = {}
    exec(code, names)
    assert f"# {[len(part.layers) for part in names['parts']]}" in code
    for key in ("pipeline", "pipeline_schedule", "stages_per_rank", "pipeline_layers"):
        assert f"| `{key}` |" in guide
        assert key in ParallelConfig.model_fields


def test_gradients_add_up_over_steps_and_steps_of_other_sizes_are_refused_on_all_ranks_alike():
    for (unequal, few), distance in run_ranks(2, odd_steps):
        assert distance < 1e-15  # gradients are about 0.1
        assert "of one size, these have [8, 9] tokens" in unequal
        assert "lower rows_per_micro_batch" in few


@settings(deadline=None, max_examples=15)
@given(
    num_layers=st.integers(1, 5),
    cuts=st.sets(st.integers(1, 4)),
    mtp=st.booleans(),
    tied=st.booleans(),
    dense=st.integers(0, 2),
)
def test_stages_one_behind_the_other_give_the_loss_and_the_gradients_of_the_whole_model(
    num_layers, cuts, mtp, tied, dense
):
    fields = {
        "num_hidden_layers": num_layers,
        "num_nextn_predict_layers": int(mtp),
        "tie_word_embeddings": tied,
        "first_k_dense_replace": min(dense, num_layers),
    }
    model = Glm(GlmConfig(**TINY | fields)).init_weights(0)
    (micro_batch,) = Objective(model.config, [batch_of([9, 4, 11])], LossWeights(), ALONE).micro_batches()
    micro_batch.run(model).backward()
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()

    bounds = [0, *sorted(cut for cut in cuts if cut < num_layers), num_layers]
    x = None
    parts = [StagePart(i, len(bounds) - 1, range(bounds[i], bounds[i + 1])) for i in range(len(bounds) - 1)]
    for part in parts:
        x = GlmStage(model, part)(x, micro_batch=micro_batch)  # the stages share the whole model's embedding here
    assert x is not None
    x.backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], rtol=0, atol=0, msg=name)


def test_a_part_names_its_modules_as_the_whole_model_does_and_has_no_others():
    model = Glm(GlmConfig(**TINY | {"num_hidden_layers": 4})).init_weights(0)
    names = set(model.state_dict())
    middle = GlmPart(model, [StagePart(1, 4, range(1, 2)), StagePart(3, 4, range(3, 4))])
    kept = ("model.layers.1.", "model.layers.3.", "model.layers.4.", "model.norm.", "model.embed_tokens.", "lm_head.")
    assert set(middle.state_dict()) == {name for name in names if name.startswith(kept)}
    assert middle.moe_layer_numbers == [1, 3, 4]
    assert GlmPart(model, [StagePart(1, 4, range(1, 2))]).moe_layer_numbers == [1]
    with pytest.raises(CheckpointError, match="has a part of the model"):
        middle.save_pretrained("never")


def test_a_part_alone_gets_the_fresh_weights_that_it_would_have_in_the_whole_model():
    whole = Glm(GlmConfig(**TINY)).init_weights(5)
    with torch.device("meta"):
        part = GlmPart(Glm(whole.config), [StagePart(1, 2, range(2, 3))])
    part.to_empty(device="cpu").init_weights(5)
    for name, tensor in part.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[name], rtol=0, atol=0, msg=name)


def test_an_attached_loss_counts_as_if_added_to_the_total():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    added = torch.autograd.grad(x.exp().sum() * 3 + x.square().sum(), x)
    attached = torch.autograd.grad(attach_loss(x * 1, x.square().sum()).exp().sum() * 3, x)
    torch.testing.assert_close(attached, added, rtol=1e-15, atol=0)


@given(
    costs=st.lists(st.floats(0.1, 10), min_size=1, max_size=9),
    data=st.data(),
)
def test_no_other_split_has_a_cheaper_costliest_part(costs, data):
    num_parts = data.draw(st.integers(1, len(costs)))
    counts = balanced_counts(costs, num_parts)

    def costliest(bounds: tuple[int, ...]) -> float:
        return max(sum(costs[a:b]) for a, b in pairwise(bounds))

    best = min(costliest((0, *inner, len(costs))) for inner in combinations(range(1, len(costs)), num_parts - 1))
    assert len(counts) == num_parts
    assert min(counts) > 0
    assert costliest(tuple(np.cumsum([0, *counts]).tolist())) == pytest.approx(best)


def test_the_last_stage_has_fewer_layers_for_its_head_and_multi_token_prediction():
    config = GlmConfig(**TINY | {"num_hidden_layers": 16, "vocab_size": 512})
    parts = split_layers(config, parallel(pipeline=4))
    assert [part.index for part in parts] == [0, 1, 2, 3]
    assert [index for part in parts for index in part.layers] == list(range(16))
    assert len(parts[3].layers) < len(parts[2].layers)
    with pytest.raises(ConfigError, match="20 stages"):
        split_layers(config, parallel(pipeline=20))
    given = parallel(pipeline=2, pipeline_layers=[6, 10])
    assert [part.layers for part in split_layers(config, given)] == [range(6), range(6, 16)]
    with pytest.raises(ConfigError, match="are 15 layers, the model has 16"):
        split_layers(config, parallel(pipeline=2, pipeline_layers=[5, 10]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pipeline": 2, "pipeline_schedule": "interleaved"}, "needs several stages a rank"),
        ({"pipeline": 2, "stages_per_rank": 2}, "needs several stages a rank"),
        ({"pipeline_layers": [3]}, "need pipeline of at least 2"),
        ({"pipeline": 2, "pipeline_layers": [3]}, "one entry for each of 2 stages"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        parallel(**fields)


def test_a_recipe_is_refused_before_training_when_a_step_of_it_does_not_fit_the_pipeline():
    fields = {
        "schedule": {"learning_rate": 1e-3, "final_learning_rate": 1e-4},
        "batch": {"num_tokens": 64, "initial_tokens": 32, "ramp_tokens": 512, "rows_multiple": 2},
        "stages": [
            {
                "name": "general",
                "mixture": {"a": 1.0},
                "num_tokens": 2048,
                "sequence_length": 8,
                "rows_per_micro_batch": 2,
            }
        ],
    }
    plan = TrainPlan(TrainConfig.from_dict(fields, origin="train"))
    assert plan.stages[0].row_counts == [4, 6, 8]
    plan.check_layout(parallel(pipeline=2))
    with pytest.raises(ConfigError, match="needs one for each of pipeline=4"):
        plan.check_layout(parallel(pipeline=4))
    with pytest.raises(ConfigError, match="takes multiples of pipeline=2"):
        plan.check_layout(parallel(pipeline=2, pipeline_schedule="interleaved", stages_per_rank=2))
    with pytest.raises(ConfigError, match="4 rows cannot be shared out to data=3"):
        plan.check_layout(parallel(data=3))
    with pytest.raises(ConfigError, match="6 rows of a step are no multiple of rows_per_micro_batch=4"):
        parallel(pipeline=2).check_step(6, rows_per_micro_batch=4)
