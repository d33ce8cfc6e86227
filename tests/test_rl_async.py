"""Asynchronous reinforcement learning: what it shares with the synchronous loop, and what it promises beyond it."""

import asyncio
import json
import math
import re
from pathlib import Path

import pytest
import tomli_w
import torch
from digit_copy import LATENCIES, DigitEnv, DigitFamily, prepared_model, tiny_tokenizer
from digit_run import digit_config, train_digits

from glmcore.cli import main
from glmcore.engine.engine import Engine
from glmcore.envs.config import EpisodeLimits
from glmcore.envs.protocol import StepResult
from glmcore.errors import ConfigError, RunError, SyncError
from glmcore.recipe import RECIPES, Recipe
from glmcore.rl.replay import BatchRecord
from glmcore.rl.timeline import read_trace
from glmcore.trajectory import TrajectoryBuffer

STEPS = 6


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    return prepared_model(tiny_tokenizer(), steps=40).state_dict()


def small(**fields):
    usual = {"max_steps": STEPS, "groups_per_step": 3, "rollouts_per_group": 4, "checkpoint_every_steps": 2}
    return digit_config(**(usual | fields))


def small_async(staleness: int = 2, **fields):
    return small(**({"mode": "async", "asynchronous": {"max_staleness": staleness}} | fields))


def train(directory: Path, config, weights, family=None, **options):
    return train_digits(directory, config, family=family or DigitFamily(LATENCIES["none"]), weights=weights, **options)


def records(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_equal(one, other):
    for (name, ours), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


class KilledError(Exception):
    pass


def kill_after(step: int):
    def kill(done: int) -> None:
        if done == step:
            raise KilledError

    return kill


@pytest.mark.parametrize("updates", [1, 3])
def test_without_staleness_it_is_the_synchronous_loop_bit_for_bit(weights, tmp_path, updates):
    one = train(tmp_path / "sync", small(updates_per_step=updates), weights)
    other = train(tmp_path / "async", small_async(updates - 1, updates_per_step=updates), weights)
    assert_equal(one, other)
    ours, theirs = records(tmp_path / "sync"), records(tmp_path / "async")
    for name in ("reward_mean", "loss", "grad_norm", "staleness", "policy_version"):
        assert [record[name] for record in ours] == [record[name] for record in theirs]
    assert [record["policy_version"] for record in ours] == [step * updates for step in range(STEPS)]
    # All k updates of a batch are on tokens of the version that it was taken at.
    assert all(set(record["staleness"]) == {str(updates - 1)} for record in ours)


def test_killed_at_any_step_the_synchronous_loop_ends_with_the_same_weights(weights, tmp_path):
    config = small()
    whole = train(tmp_path / "whole", config, weights)
    for step in range(1, STEPS):
        with pytest.raises(KilledError):
            train(tmp_path / "killed", config, weights, after_step=kill_after(step))
    assert_equal(train(tmp_path / "killed", config, weights), whole)
    assert [record["step"] for record in records(tmp_path / "killed")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("staleness", [1, 4])
def test_no_token_is_older_than_max_staleness_and_slow_environments_do_not_stop_the_trainer(
    weights, tmp_path, staleness
):
    config = small_async(staleness, max_steps=12)
    train(tmp_path, config, weights, DigitFamily(lambda random: float(random.choice([0.0, 0.0, 0.0, 0.2]))))
    counts: dict[int, int] = {}
    for record in records(tmp_path):
        for age, count in record["staleness"].items():
            counts[int(age)] = counts.get(int(age), 0) + count
    assert max(counts) <= staleness
    assert min(counts) >= 0
    assert sum(count for age, count in counts.items() if age) > 0  # sampling did go on while the trainer trained
    with TrajectoryBuffer.open(
        str(tmp_path / "trajectories"), capacity=1000, max_staleness=staleness, groups_per_step=3
    ) as buffer:
        stats = buffer.stats()
        assert stats["max_staleness_seen"] == max(counts)
        assert stats["staleness"] == counts
        assert stats["consumed_groups"] == 12 * 3


def test_a_rollout_goes_on_under_new_weights_and_each_token_tells_its_version(weights, tmp_path):
    # Answers take longer to sample than a step to train, so that weights come while they are sampled.
    train(tmp_path, small_async(4, max_steps=8, max_response_tokens=48), weights)
    record = BatchRecord(tmp_path / "batches")
    versions = [sample.policy_versions for step in range(1, 9) for sample in record.read(step).samples]
    assert any(len(set(versions.tolist())) > 1 for versions in versions)
    assert all((versions[1:] >= versions[:-1]).all() for versions in versions)


def test_a_replay_killed_at_every_step_ends_with_the_weights_of_the_run_that_it_repeats(weights, tmp_path):
    slow = DigitFamily(lambda random: float(random.choice([0.0, 0.05])))
    config = small_async(updates_per_step=3)
    whole = train(tmp_path / "whole", config, weights, slow)
    (tmp_path / "whole" / "recipe.toml").write_text(recipe_of(config))
    replay = config.model_copy(update={"replay": str(tmp_path / "whole")})
    for step in range(1, STEPS):
        with pytest.raises(KilledError):
            train(tmp_path / "again", replay, weights, after_step=kill_after(step))
    assert_equal(train(tmp_path / "again", replay, weights), whole)
    for name in ("reward_mean", "loss", "grad_norm", "staleness", "kl_behaviour"):
        ours, theirs = records(tmp_path / "whole"), records(tmp_path / "again")
        assert [record[name] for record in ours] == [record[name] for record in theirs]


def recipe_of(config) -> str:
    recipe = Recipe.load([RECIPES / "nano.toml"])
    values = recipe.model_copy(update={"rl": config}).model_dump(exclude_none=True)
    return tomli_w.dumps(values | {"corpus": values["corpus"] | {"problems": {"digits": 1}}})


def test_a_replay_refuses_what_it_cannot_repeat(weights, tmp_path):
    config = small_async(max_steps=1)
    train(tmp_path / "run", config, weights)
    replay = config.model_copy(update={"replay": str(tmp_path / "run")})
    with pytest.raises(RunError, match="holds no run"):
        train(tmp_path / "again", replay, weights)
    (tmp_path / "run" / "recipe.toml").write_text(recipe_of(config))
    with pytest.raises(RunError, match="1 recorded steps, 3 are wanted"):
        train(tmp_path / "again", replay.model_copy(update={"max_steps": 3}), weights)
    with pytest.raises(RunError, match=r"trained with another rl\.learning_rate"):
        train(tmp_path / "again", replay.model_copy(update={"learning_rate": 1.0}), weights)
    file = tmp_path / "run" / "batches" / "00000001.batch"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"00000001\.batch is damaged: its checksum differs"):
        train(tmp_path / "again", replay, weights)


def test_a_stopped_run_repeats_the_batches_it_has_recorded_and_goes_on_with_what_the_buffer_holds(weights, tmp_path):
    config = small_async(max_steps=8, checkpoint_every_steps=4)
    slow = DigitFamily(lambda random: float(random.choice([0.0, 0.1])))
    with pytest.raises(KilledError):
        train(tmp_path, config, weights, slow, after_step=kill_after(7))
    record = BatchRecord(tmp_path / "batches")
    first = [record.read(step) for step in range(1, 8)]
    lost = [line["loss"] for line in records(tmp_path)]
    train(tmp_path, config, weights, slow)
    again = [record.read(step) for step in range(1, 9)]
    assert [batch.group_ids for batch in again[:7]] == [batch.group_ids for batch in first]
    assert [line["loss"] for line in records(tmp_path)][:7] == lost
    trained = [group for batch in again for group in batch.group_ids]
    assert len(set(trained)) == len(trained) == 8 * 3


class BadEnv(DigitEnv):
    answers_at_once = False

    """Does something wrong in three attempts of four."""

    async def step(self, message):
        fault = self.attempt % 4
        if fault == 1:
            raise ValueError("the service is down")
        if fault == 2:
            return StepResult(reward=math.nan, done=True)
        if fault == 3:
            await asyncio.sleep(3600)
        return await super().step(message)


class BadFamily(DigitFamily):
    def new(self):
        return BadEnv(self)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_environments_that_raise_hang_or_give_nan_fail_alone_and_are_counted(weights, tmp_path, mode):
    limits = EpisodeLimits(step_seconds=0.1)
    config = small(mode=mode, max_steps=2)
    train(tmp_path, config, weights, BadFamily(LATENCIES["none"]), limits=limits)
    assert [record["failed"] for record in records(tmp_path)] == [0.75, 0.75]
    with TrajectoryBuffer.open(
        str(tmp_path / "trajectories"), capacity=100, max_staleness=config.max_staleness, groups_per_step=3
    ) as buffer:
        assert buffer.stats()["failed_rollouts"] >= 2 * 9


class BrokenFamily(DigitFamily):
    def new(self):
        raise RunError("the pool of sandboxes is gone")


def test_a_failure_that_concerns_all_ends_the_run_with_its_reason(weights, tmp_path):
    with pytest.raises(RunError, match="the pool of sandboxes is gone"):
        train(tmp_path, small_async(), weights, BrokenFamily(LATENCIES["none"]))


def test_an_engine_that_does_not_take_the_weights_in_time_ends_the_run_with_the_reason(weights, tmp_path, monkeypatch):
    import time

    loaded = Engine.update_weights

    def slow(self, version, buckets):
        time.sleep(0.5 if version else 0)
        return loaded(self, version, buckets)

    monkeypatch.setattr(Engine, "update_weights", slow)
    with pytest.raises(SyncError, match=r"longer than 0\.2 s to load version 1"):
        train(tmp_path, small_async(sync_timeout_s=0.2), weights)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"updates_per_step": 3, "asynchronous": {"max_staleness": 1}}, "less than what updates_per_step=3 makes"),
        ({"asynchronous": {"max_staleness": -1}}, "max_staleness"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        small_async(**fields)


def test_the_trace_has_trainer_engine_and_environments(weights, tmp_path):
    train(tmp_path, small_async(), weights, DigitFamily(lambda _: 0.01))
    events = read_trace(tmp_path / "trace.json")
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == {"trainer", "engine", "environments"}
    steps = [event["name"] for event in events if event["name"].startswith("step ")]
    assert steps == [f"step {step}" for step in range(1, STEPS + 1)]
    for record in records(tmp_path):
        for name in ("trainer_utilisation", "engine_utilisation", "slot_utilisation"):
            assert 0 <= record[name] <= 1


def test_the_blocks_of_the_guide_hold(tmp_path):
    guide = (Path(__file__).parents[1] / "docs" / "rl.md").read_text()
    [settings] = re.findall(r"```toml\n(.*?)```", guide, flags=re.DOTALL)
    (tmp_path / "settings.toml").write_text(settings)
    recipe = Recipe.load([RECIPES / "nano-rl.toml", tmp_path / "settings.toml"])
    assert (recipe.rl.max_staleness, recipe.rl.asynchronous.environment_slots) == (4, 64)
    [commands] = re.findall(r"```sh\n(.*?)```", guide, flags=re.DOTALL)
    for command in commands.splitlines():
        assert main([*command.split("#")[0].split()[1:], "--dry-run"]) == 0, command
