"""What each step of a recipe is."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmcore.errors import ConfigError
from glmcore.recipe import RECIPES, Recipe
from glmcore.train.config import BalanceConfig, BatchConfig, ScheduleConfig, StageConfig, TrainConfig
from glmcore.train.schedule import StageSteps, TrainPlan, rate_at, value_at

SFT = {"learning_rate": 0.5, "final_learning_rate": 0.2}


def train(stages: list[dict], **fields) -> TrainConfig:
    plain = {"sequence_length": 4, "mixture": {"prose": 1.0}, "num_tokens": 80}
    values = {
        "schedule": {"learning_rate": 1.0, "final_learning_rate": 0.1, "warmup_tokens": 40},
        "batch": {"num_tokens": 8},
        "stages": [{**plain, "name": f"stage{number}", **stage} for number, stage in enumerate(stages)],
    }
    return TrainConfig.from_dict({**values, **fields}, origin="test")


def plain_rows(batch: BatchConfig, length: int, tokens: int) -> int:
    """The specification: a straight line over the ramp, cut down to whole multiples of rows."""
    size = batch.num_tokens
    if batch.initial_tokens is not None and tokens < batch.ramp_tokens:
        size = batch.initial_tokens + (size - batch.initial_tokens) * tokens // batch.ramp_tokens
    return max(size // (batch.rows_multiple * length), 1) * batch.rows_multiple


@given(
    length=st.integers(1, 9),
    num_tokens=st.integers(1, 2_000),
    first_token=st.integers(0, 500),
    size=st.integers(1, 100),
    growth=st.integers(0, 100),
    ramp=st.integers(0, 1_500),
    multiple=st.integers(1, 4),
)
def test_steps_found_by_stretches_are_those_of_the_plain_rule_one_by_one(
    length, num_tokens, first_token, size, growth, ramp, multiple
):
    batch = BatchConfig(
        initial_tokens=size if ramp else None, num_tokens=size + growth, ramp_tokens=ramp, rows_multiple=multiple
    )
    stage = StageConfig(name="a", mixture={"b": 1.0}, num_tokens=num_tokens, sequence_length=length)
    steps = StageSteps(stage, batch, first_token)
    row = 0
    for number in range(1, steps.num_steps + 1):
        assert row * length < num_tokens
        rows = plain_rows(batch, length, first_token + row * length)
        step = steps.step(number)
        assert step.rows == range(row, row + rows)
        assert (step.first_token, step.num_tokens) == (first_token + row * length, rows * length)
        row += rows
    assert row * length >= num_tokens
    assert (steps.num_rows, steps.num_tokens) == (row, row * length)


def test_23_trillion_tokens_are_planned_at_once_and_the_ramp_ends_where_it_should():
    batch = BatchConfig(initial_tokens=2**24, num_tokens=2**26, ramp_tokens=500 * 10**9, rows_multiple=64)
    stage = StageConfig(name="a", mixture={"b": 1.0}, num_tokens=23 * 10**12, sequence_length=4_096)
    steps = StageSteps(stage, batch, 0)
    assert steps.sizes == (2**24, 2**26)
    full = next(n for n in range(1, steps.num_steps) if steps.step(n).num_tokens == 2**26)
    assert 500 * 10**9 <= steps.step(full).first_token < 500 * 10**9 + 2**26
    sizes = [steps.step(number).num_tokens for number in range(1, full, 97)]
    assert sizes == sorted(sizes)


def test_one_cosine_spans_the_stages_up_to_mid_training_and_sft_has_its_own():
    plan = TrainPlan(train([{}, {"kind": "midtrain"}, {"kind": "sft", "schedule": SFT}]))
    rates = [plan.learning_rate(index, step) for index in range(2) for step in range(1, 11)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(0.1)
    own = [plan.learning_rate(2, step) for step in range(1, 11)]
    assert own[-1] == pytest.approx(0.2)
    assert own == sorted(own, reverse=True)
    assert own[0] < 0.5


def test_a_cosine_is_halfway_in_the_middle_and_does_not_depend_on_the_size_of_steps():
    schedule = ScheduleConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_tokens=20)
    assert rate_at(schedule, 10, 120) == pytest.approx(0.5)
    assert rate_at(schedule, 70, 120) == pytest.approx(0.55)
    assert rate_at(schedule, 45, 120) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    small, large = (TrainPlan(train([{}], batch={"num_tokens": size})) for size in (4, 16))
    assert [small.learning_rate(0, 4 * n) for n in range(1, 6)] == [large.learning_rate(0, n) for n in range(1, 6)]


def test_wsd_stays_at_the_peak_and_falls_in_a_straight_line_at_the_end():
    schedule = ScheduleConfig(
        shape="wsd", learning_rate=1.0, final_learning_rate=0.2, warmup_tokens=10, decay_tokens=40
    )
    rates = [rate_at(schedule, tokens, 100) for tokens in (5, 10, 60, 80, 100)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.6, 0.2])


def test_losses_are_weighted_by_the_tokens_seen_before_the_step():
    changes = [{"from_tokens": 0, "value": 0.3}, {"from_tokens": 88, "value": 0.1}]
    plan = TrainPlan(train([{}, {}], balance={"mtp_loss_weight": changes, "bias_update_rate": 0}))
    assert plan.loss_weights(0, 10).mtp_loss_weight == 0.3
    assert plan.loss_weights(1, 1).mtp_loss_weight == 0.3  # 80 tokens before it
    assert plan.loss_weights(1, 2).mtp_loss_weight == 0.1
    assert plan.loss_weights(1, 2).bias_update_rate == 0.0
    assert value_at(BalanceConfig().sequence_loss_weight, 10**13) == 1e-4


def test_a_whole_number_may_be_written_as_a_float():
    assert train([{"num_tokens": 15e12}]).stages[0].num_tokens == 15 * 10**12


@pytest.mark.parametrize(
    ("stages", "fields", "message"),
    [
        ([{"num_tokens": 1.5}], {}, "stages.0.num_tokens: "),
        ([{"num_tokens": 0}], {}, "stages.0.num_tokens: "),
        ([{}], {"batch": {"num_tokens": 8, "initial_tokens": 4}}, "initial_tokens and ramp_tokens go together"),
        ([{}], {"batch": {"num_tokens": 8, "initial_tokens": 9, "ramp_tokens": 5}}, "must not be above num_tokens=8"),
        (
            [{}],
            {"schedule": {**SFT, "warmup_tokens": 80}},
            "train.schedule: 80 tokens of warm-up and decay are too many for 80",
        ),
        ([{}], {"schedule": {**SFT, "decay_tokens": 8}}, "decay_tokens and shape = 'wsd' go together"),
        ([{}], {"schedule": {**SFT, "shape": "wsd"}}, "decay_tokens and shape = 'wsd' go together"),
        ([{}], {"balance": {"mtp_loss_weight": [{"from_tokens": 5, "value": 1.0}]}}, "must begin with 0 and rise"),
        ([{}, {"name": "stage0"}], {}, "stage names must be distinct"),
        ([{"kind": "midtrain"}, {}], {}, "in the order pretrain, midtrain, sft"),
        (
            [{"kind": "sft", "schedule": {**SFT, "warmup_tokens": 90}}],
            {},
            "schedule of stage stage0: 90 tokens of warm-up and decay are too many for 80",
        ),
    ],
)
def test_a_wrong_recipe_names_what_is_wrong(stages, fields, message):
    with pytest.raises(ConfigError) as caught:
        train(stages, **fields)
    assert message in str(caught.value)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_packaged_recipe_is_valid_and_its_steps_can_be_planned(file: Path):
    plan = TrainPlan(Recipe.load([file]).train)
    for steps in plan.stages:
        assert steps.step(steps.num_steps).end_token == steps.first_token + steps.num_tokens
