"""The curriculum in the loop: killed and gone on with, in turn and asynchronously."""

import json

import pytest
import torch
from digit_copy import LATENCIES, DigitFamily, digit_tasks, prepared_model, tiny_tokenizer
from digit_run import digit_config, train_digits

from glmcore.rl.curriculum.config import CurriculumConfig
from glmcore.rl.curriculum.source import CurriculumSource

STEPS = 5
STAGES = CurriculumConfig.model_validate(
    {
        "stages": [{"difficulty": "moderate", "until": "plateau", "last_step": 3}, {"difficulty": "any"}],
        "plateau": {"window": 1, "min_rise": 0.2},
        "difficulty": {"few_attempts": 4, "many_attempts": 64},
    }
)


@pytest.fixture(scope="module")
def weights():
    torch.set_num_threads(1)
    return prepared_model(tiny_tokenizer(), steps=40).state_dict()


def train(directory, weights, after_step=lambda _: None, **fields):
    usual = {
        "max_steps": STEPS,
        "groups_per_step": 3,
        "rollouts_per_group": 4,
        "checkpoint_every_steps": 2,
        "pool": {"num_tasks": 12},
        "curriculum": STAGES.model_dump(exclude_none=True),
        "length_stages": [{"last_step": 2, "max_tokens": 5}],
    }
    source = CurriculumSource(digit_tasks(12), STAGES, records={}, seed=0)
    config = digit_config(**(usual | fields))
    family = DigitFamily(LATENCIES["none"])
    return train_digits(directory, config, family=family, weights=weights, tasks=source, after_step=after_step)


def records(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


class KilledError(Exception):
    pass


def kill_after(step):
    def kill(done):
        if done == step:
            raise KilledError

    return kill


@pytest.mark.parametrize("dynamic", [None, {"max_factor": 3.0, "smoothing": 0.5}])
def test_killed_after_any_step_it_ends_with_the_same_weights_and_gives_out_the_same_tasks(weights, tmp_path, dynamic):
    whole = train(tmp_path / "whole", weights, dynamic_sampling=dynamic)
    for step in range(1, STEPS):
        with pytest.raises(KilledError):
            train(tmp_path / "killed", weights, kill_after(step), dynamic_sampling=dynamic)
    resumed = train(tmp_path / "killed", weights, dynamic_sampling=dynamic)
    for (name, ours), theirs in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    for one, other in zip(records(tmp_path / "killed"), records(tmp_path / "whole"), strict=True):
        for figure in ("reward_mean", "sampled_groups", "sampled_reward_mean", "curriculum_stage", "tasks_moderate"):
            assert one[figure] == other[figure], figure


def test_groups_of_equal_rewards_are_replaced_and_still_counted(weights, tmp_path):
    train(tmp_path / "run", weights, dynamic_sampling={"max_factor": 4.0})
    for record in records(tmp_path / "run"):
        assert record["uniform_groups"] == 0 or record["sampled_groups"] == 12
        attempts = record["sampled_groups"] * 4
        assert attempts >= 12


def test_beside_an_asynchronous_trainer_stages_pass_and_every_group_is_observed(weights, tmp_path):
    train(tmp_path / "run", weights, mode="async", asynchronous={"max_staleness": 2})
    steps = records(tmp_path / "run")
    assert [record["sampled_groups"] for record in steps] == [3] * STEPS
    assert steps[-1]["curriculum_stage"] == 1
    known = sum(steps[-1][f"tasks_{kind}"] for kind in ("unknown", "easy", "moderate", "hard", "unsolved"))
    assert known == 12
