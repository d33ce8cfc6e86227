"""Dynamic sampling and dynamic temperature beside an asynchronous trainer."""

import json
from pathlib import Path

import pytest
import tomli_w
import torch
from digit_copy import LATENCIES, DigitEnv, DigitFamily, prepared_model, tiny_tokenizer
from digit_run import digit_config, train_digits

from glmcore.envs.protocol import StepResult
from glmcore.recipe import RECIPES, Recipe
from glmcore.rl.async_sifting import SiftingBuffer
from glmcore.rl.replay import BatchRecord
from glmcore.trajectory import TrajectoryBuffer

STEPS = 6
SAMPLING = {"max_factor": 3.0, "smoothing": 0.5}
TEMPERATURE = {
    "candidates": [0.8, 0.9, 1.1, 1.3],
    "max_loss": 0.1,
    "plateau": {"window": 1, "min_rise": 10.0},  # the reward counts as stable after every second step
}


@pytest.fixture(scope="module")
def weights():
    torch.set_num_threads(1)
    return prepared_model(tiny_tokenizer(), steps=40).state_dict()


class Held:
    """Held-out tasks whose reward depends on the weights and the temperature alone."""

    def __init__(self):
        self.asked: list[tuple[int, float]] = []

    def run_if_due(self, finished_steps, settings):
        pass

    def held_out_reward(self, temperature, settings, version):
        self.asked.append((version, temperature))
        return 1.0 if temperature < 0.7 + 0.1 * version else 0.5


class EqualEnv(DigitEnv):
    """All attempts at every second task are worth the same."""

    async def step(self, message):
        result = await super().step(message)
        equal = int(self._task.id.split("#")[1]) % 2
        return StepResult(reward=float(equal * (len(self._task.id) % 2)) if equal else result.reward, done=True)


class EqualFamily(DigitFamily):
    def new(self):
        return EqualEnv(self)


def train(directory: Path, weights, **fields):
    usual = {"max_steps": STEPS, "groups_per_step": 3, "rollouts_per_group": 4, "checkpoint_every_steps": 2}
    config = digit_config(**(usual | fields))
    held = Held()
    family = EqualFamily(LATENCIES["uneven"])
    return train_digits(directory, config, family=family, weights=weights, examination=held), config, held


def write_recipe(directory: Path, config) -> None:
    """The recipe of a run in a directory, which a replay reads."""
    recipe = Recipe.load([RECIPES / "nano.toml"])
    values = recipe.model_copy(update={"rl": config}).model_dump(exclude_none=True)
    written = tomli_w.dumps(values | {"corpus": values["corpus"] | {"problems": {"digits": 1}}})
    (directory / "recipe.toml").write_text(written)


def records(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("fields", [{"dynamic_sampling": SAMPLING}, {"dynamic_temperature": TEMPERATURE}, None])
def test_without_staleness_it_is_the_synchronous_loop_bit_for_bit(weights, tmp_path, fields):
    fields = fields or {"dynamic_sampling": SAMPLING, "dynamic_temperature": TEMPERATURE}
    one, _, asked = train(tmp_path / "sync", weights, **fields)
    latest = {"mode": "async", "asynchronous": {"max_staleness": 0}}
    other, _, asked_too = train(tmp_path / "async", weights, **(fields | latest))
    for (name, ours), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert asked.asked == asked_too.asked
    for ours, theirs in zip(records(tmp_path / "sync"), records(tmp_path / "async"), strict=True):
        for figure in ("loss", "reward_mean", "sampled_groups", "teaching_groups", "temperature", "staleness"):
            assert ours[figure] == theirs[figure], figure
    if "dynamic_temperature" in fields:
        assert len({record["temperature"] for record in records(tmp_path / "async")}) > 2


@pytest.fixture(scope="module")
def stale(weights, tmp_path_factory):
    """An asynchronous run with both."""
    directory = tmp_path_factory.mktemp("stale")
    fields = {"dynamic_sampling": SAMPLING, "dynamic_temperature": TEMPERATURE}
    model, config, _ = train(directory, weights, mode="async", asynchronous={"max_staleness": 2}, **fields)
    return directory, model, config


def test_groups_of_equal_rewards_are_replaced_and_counted_and_nothing_is_too_old(stale):
    directory, _, _ = stale
    steps = records(directory)
    assert max(int(age) for record in steps for age in record["staleness"]) <= 2
    most = 3 * SAMPLING["max_factor"]
    # Whatever is dropped for a step is counted, and equal groups are trained on only beyond the most of them.
    assert max(record["sampled_groups"] for record in steps) <= most
    assert all(record["uniform_groups"] == 0 for record in steps) or most in [step["sampled_groups"] for step in steps]
    assert sum(record["sampled_groups"] for record in steps) > 3 * STEPS
    with TrajectoryBuffer.open(
        str(directory / "trajectories"), capacity=1000, max_staleness=2, groups_per_step=3
    ) as buffer:
        taken = [group.group_id for lease in buffer.consumed() for group in lease.groups]
        assert len(set(taken)) == len(taken) == 3 * STEPS


def test_what_was_sampled_at_an_earlier_temperature_is_weighed_at_that(stale):
    directory, _, _ = stale
    from glmcore.rl.episode_record import temperatures

    batches = [BatchRecord(directory / "batches").read(step) for step in range(1, STEPS + 1)]
    used = [set(temperatures(batch.samples, 0.0)) for batch in batches]
    assert 0.0 not in set().union(*used)
    now = [record["temperature"] for record in records(directory)]
    assert any(sampled != {temperature} for sampled, temperature in zip(used, now, strict=True))
    # The trainer's model is the sampler's but for its 8-bit weights: at the wrong temperature they would be far apart.
    assert max(record["logprob_gap"] for record in records(directory)) < 0.5


def test_a_replay_ends_with_the_same_weights_and_figures(stale, weights, tmp_path):
    directory, model, config = stale
    write_recipe(directory, config)
    again = train_digits(
        tmp_path,
        config.model_copy(update={"replay": str(directory)}),
        family=EqualFamily(LATENCIES["none"]),
        weights=weights,
        examination=Held(),
    )
    for (name, ours), theirs in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    for ours, theirs in zip(records(directory), records(tmp_path), strict=True):
        for figure in ("loss", "sampled_groups", "sampled_reward_mean", "temperature"):
            assert ours[figure] == theirs[figure], figure


def test_groups_that_a_killed_process_has_left_half_done_are_dropped_too():
    buffer = TrajectoryBuffer.open(":memory:", capacity=64, max_staleness=0, groups_per_step=3)
    groups = [buffer.admit(f"task {number}", 2, 0) for number in range(3)]
    for group, reward in zip(groups, (1.0, 0.0, None), strict=True):
        first = buffer.rollouts(group)[0]
        if reward is None:
            buffer.fail(first, "the sandbox died")
        else:
            buffer.finish(first, reward)
    sieve = SiftingBuffer.of(buffer, most=2)
    sieve.follow_left()
    for group in groups:
        sieve.finish(buffer.rollouts(group)[1], 1.0)  # equal, different, alone
    assert [group.group_id for group in buffer.groups()] == [groups[1]]
    assert [(group.group_id, group.rewards) for group in sieve.take_dropped()] == [(0, [1.0, 1.0]), (2, [1.0])]
    assert buffer.room(0) == 2
