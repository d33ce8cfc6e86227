import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_tasks import tasks

from glmcore.errors import ConfigError
from glmcore.rl.curriculum.config import (
    CurriculumConfig,
    DifficultyConfig,
    DynamicSamplingConfig,
    PlateauConfig,
    TemperatureConfig,
)
from glmcore.rl.curriculum.difficulty import PassRecord, next_chunk
from glmcore.rl.curriculum.plateau import Plateau, is_stable
from glmcore.rl.curriculum.sampling import DynamicSampling, GroupQuota, teaches
from glmcore.rl.curriculum.source import CurriculumSource
from glmcore.rl.curriculum.temperature import DynamicTemperature, choose_temperature

TWO_STAGES = CurriculumConfig.model_validate(
    {
        "stages": [{"difficulty": "moderate", "until": "step", "last_step": 5}, {"difficulty": "hard"}],
        "difficulty": {"few_attempts": 4, "many_attempts": 32, "half_life": 8.0},
    }
)
REWARDS = st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=40)


def record_of(rewards, half_life=8.0):
    record = PassRecord()
    record.add(rewards, half_life)
    return record


def plain_kind(rewards, config):
    """The definition: pass@few of the first few attempts, pass@many of the first many."""
    few, many = rewards[: config.few_attempts], rewards[: config.many_attempts]
    if len(few) == config.few_attempts and 1.0 in few:
        return "moderate"
    if 1.0 in rewards[config.few_attempts :]:
        return "hard"
    return "unsolved" if len(many) == config.many_attempts and 1.0 not in many else "unknown"


@given(rewards=REWARDS, cuts=st.lists(st.integers(0, 40), max_size=4))
def test_the_kind_of_a_task_follows_from_its_attempts_however_they_come_in(rewards, cuts):
    config = DifficultyConfig(few_attempts=4, many_attempts=16, half_life=8.0)
    record = PassRecord()
    bounds = [0, *sorted(min(cut, len(rewards)) for cut in cuts), len(rewards)]
    for start, end in zip(bounds, bounds[1:], strict=False):
        record.add(rewards[start:end], 8.0)
    assert record == record_of(rewards)
    assert record.kind(config) == plain_kind(rewards, config)
    assert (record.attempts, record.passes) == (len(rewards), rewards.count(1.0))


@given(rewards=st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60), half_life=st.floats(1, 100))
def test_the_present_rate_is_the_mean_weighted_by_half_lives(rewards, half_life):
    age = np.arange(len(rewards))[::-1]
    expected = np.average(rewards, weights=0.5 ** (age / half_life))
    # 60 steps of float64 rounding, each of 1e-16 relative: 1e-12 leaves room
    assert record_of(rewards, half_life).rate == pytest.approx(expected, abs=1e-12)


def test_a_solved_task_is_easy_and_no_longer_when_the_policy_forgets_it():
    config = TWO_STAGES.difficulty
    record = record_of([1.0] * 8)
    assert record.difficulty(config) == "easy"
    record.add([0.0] * 4, config.half_life)
    assert record.difficulty(config) == "moderate"
    assert math.isnan(PassRecord().rate)


@given(first_pass=st.integers(1, 700), few=st.integers(1, 16), many=st.integers(17, 600))
def test_chunks_end_as_soon_as_the_class_is_told_and_cost_at_most_twice_what_is_needed(first_pass, few, many):
    config = DifficultyConfig(few_attempts=few, many_attempts=many)
    record, chunks = PassRecord(), 0
    while chunk := next_chunk(record, config):
        record.add([float(record.attempts + i + 1 >= first_pass) for i in range(chunk)], 32.0)
        chunks += 1
    needed = few if first_pass <= few else min(first_pass, many)
    assert needed <= record.attempts <= max(2 * needed, few)
    assert record.attempts <= many
    assert record.kind(config) == ("moderate" if first_pass <= few else "hard" if first_pass <= many else "unsolved")
    assert chunks <= 1 + math.ceil(math.log2(many / few) + 1e-9)


class Learner:
    """A policy whose chance on a task of difficulty d rises with its skill: 1 / (1 + exp(d - skill))."""

    def __init__(self, difficulties, seed=0):
        self.difficulties, self.skill = difficulties, 0.0
        self.random = np.random.default_rng(seed)

    def attempts(self, task_id, count):
        chance = 1 / (1 + math.exp(self.difficulties[task_id] - self.skill))
        return [float(self.random.random() < chance) for _ in range(count)]

    def learn(self, groups):
        self.skill += 0.02 * sum(teaches(rewards) for rewards in groups)


def probed(learner, pool, config=TWO_STAGES):
    records = {}
    for task in pool:
        records[task.id] = record = PassRecord()
        while chunk := next_chunk(record, config.difficulty):
            record.add(learner.attempts(task.id, chunk), config.difficulty.half_life)
    return records


def walk(source, learner, steps, groups=8):
    """Train a simulated learner; gives the tasks of each step."""
    given_out = []
    for step in range(1, steps + 1):
        chosen = source.next(groups)
        given_out.append([task.id for task in chosen])
        rewards = [learner.attempts(task.id, 4) for task in chosen]
        for task, group in zip(chosen, rewards, strict=True):
            source.observe(task.id, group)
        learner.learn(rewards)
        source.finish_step(step, float(np.mean(rewards)))
    return given_out


def spread_pool(count=120):
    pool = tasks(count)
    return pool, {task.id: 6.0 * place / count - 2.0 for place, task in enumerate(pool)}


def test_stage_one_gives_moderate_tasks_and_stage_two_hard_ones():
    pool, difficulties = spread_pool()
    learner = Learner(difficulties)
    records = probed(learner, pool)
    kinds = {id_: record.kind(TWO_STAGES.difficulty) for id_, record in records.items()}
    assert {"moderate", "hard"} <= set(kinds.values())
    source = CurriculumSource(pool, TWO_STAGES, records=records, seed=0)
    given_out = walk(source, learner, 8)
    assert {kinds[id_] for step in given_out[:5] for id_ in step} == {"moderate"}
    assert {kinds[id_] for step in given_out[5:] for id_ in step} == {"hard"}
    figures = source.figures()
    assert figures["curriculum_stage"] == 1
    assert sum(value for name, value in figures.items() if name.startswith("tasks_")) == len(pool)


def test_a_learner_on_tasks_of_its_own_difficulty_learns_faster_than_on_all():
    pool, difficulties = spread_pool()
    skills = {}
    for difficulty in ("moderate", "any"):
        config = CurriculumConfig.model_validate({"stages": [{"difficulty": difficulty}]})
        learner = Learner({id_: value * 4 for id_, value in difficulties.items()})
        source = CurriculumSource(pool, config, records=probed(learner, pool, config), seed=0)
        walk(source, learner, 10)
        skills[difficulty] = learner.skill
    assert skills["moderate"] > skills["any"]


@settings(max_examples=25)
@given(cut=st.integers(0, 12), seed=st.integers(0, 3), until=st.sampled_from(["step", "plateau"]))
def test_a_source_restored_from_json_goes_on_as_if_it_had_never_stopped(cut, seed, until):
    pool, difficulties = spread_pool(40)
    config = TWO_STAGES.model_copy(
        update={
            "stages": [TWO_STAGES.stages[0].model_copy(update={"until": until}), TWO_STAGES.stages[1]],
            "plateau": PlateauConfig(window=2, min_rise=0.05),
        }
    )
    records = probed(Learner(difficulties, seed), pool)
    source, learner = CurriculumSource(pool, config, records=records, seed=seed), Learner(difficulties, seed)
    walk(source, learner, cut)
    state = json.loads(json.dumps(source.state_dict()))
    other = CurriculumSource(pool, config, records=records, seed=seed)
    other.load_state_dict(state)
    twin = Learner(difficulties, 9)
    twin.skill = learner.skill
    learner.random = np.random.default_rng(9)
    assert walk(other, twin, 6) == walk(source, learner, 6)
    assert other.figures() == source.figures()


@given(count=st.integers(1, 30), seed=st.integers(0, 5))
def test_a_round_gives_every_member_once_before_any_comes_again(count, seed):
    config = CurriculumConfig.model_validate({"stages": [{"difficulty": "any"}]})
    source = CurriculumSource(tasks(count), config, records={}, seed=seed)
    for _ in range(3):
        assert sorted(task.id for task in source.next(count)) == sorted(task.id for task in tasks(count))


def test_tasks_that_have_become_easy_are_left_out_until_nothing_else_is_left():
    config = CurriculumConfig.model_validate({"stages": [{"difficulty": "moderate"}]})
    source = CurriculumSource(tasks(4), config, records={}, seed=0)
    for place in range(3):
        source.observe(f"t/{place}", [1.0] * 8)
    assert {task.id for task in source.next(6)} == {"t/3"}
    source.observe("t/3", [1.0] * 8)
    assert {task.id for task in source.next(8)} == {"t/0", "t/1", "t/2", "t/3"}


def test_a_stage_whose_tasks_are_all_easy_gives_way_to_the_next():
    records = {"t/0": record_of([1.0] * 8), "t/1": record_of([0.0] * 8 + [1.0])}
    source = CurriculumSource(tasks(2), TWO_STAGES, records=records, seed=0)
    assert [task.id for task in source.next(2)] == ["t/1", "t/1"]
    assert source.stage == 1


def test_unverified_tasks_stay_out_where_a_stage_asks_for_verified_ones():
    config = CurriculumConfig.model_validate({"stages": [{"difficulty": "any", "verified_only": True}]})
    source = CurriculumSource(tasks(4), config, records={}, unverified=frozenset({"t/1"}), seed=0)
    assert {task.id for task in source.next(12)} == {"t/0", "t/2", "t/3"}


def test_a_curriculum_without_tasks_to_begin_with_says_what_to_do():
    config = CurriculumConfig.model_validate({"stages": [{"difficulty": "hard"}]})
    with pytest.raises(ConfigError, match="glmcore rl probe"):
        CurriculumSource(tasks(4), config, records={}, seed=0)


@given(slope=st.floats(0.011, 0.2), window=st.integers(1, 10))
def test_a_rising_reward_is_never_stable_and_one_that_has_risen_becomes_so(slope, window):
    plateau = Plateau(PlateauConfig(window=window, min_rise=0.01))
    assert not any(plateau.add(step * slope) for step in range(30))
    assert [plateau.add(29 * slope) for _ in range(2 * window)][-1]
    plateau.reset()
    assert not plateau.add(1.0)


def test_noise_of_evaluation_size_seldom_hides_a_rise():
    random = np.random.default_rng(0)
    config = PlateauConfig(window=10, min_rise=0.01)
    # Means of 128 rollouts have deviation 0.044, means of ten steps 0.014, their difference 0.02. A rise of 0.1 between
    # the windows is 4.5 deviations above 0.01; the chance of missing it is below 1e-5.
    rising = [is_stable(0.01 * np.arange(20) + random.normal(0, 0.044, 20), config) for _ in range(500)]
    assert not any(rising)
    level = [is_stable(0.5 + random.normal(0, 0.044, 20), config) for _ in range(500)]
    # P(noise of deviation 0.02 < 0.01) = 0.69, give or take 5 * 0.02
    assert 0.59 < np.mean(level) < 0.79


@given(
    groups=st.lists(st.booleans(), min_size=400, max_size=400),
    target=st.integers(1, 40),
    share=st.floats(0.05, 1.0),
    factor=st.integers(1, 8),
)
def test_a_quota_is_filled_within_its_limit_in_the_order_of_arrival(groups, target, share, factor):
    quota = GroupQuota(target, share, factor * target)
    kept, seen, stream = [], 0, iter(groups)
    while wanted := quota.wanted():
        assert wanted <= factor * target - seen
        for _ in range(wanted):
            signal = next(stream)
            if quota.offer([0.0, 1.0] if signal else [1.0, 1.0]):
                kept.append(seen)
            seen += 1
    assert kept == [place for place, signal in enumerate(groups[:seen]) if signal][:target]
    assert len(kept) == target or seen == factor * target


def test_over_sampling_follows_the_share_of_groups_that_teach():
    sampling = DynamicSampling(DynamicSamplingConfig(max_factor=4.0, smoothing=0.5), 16)
    random = np.random.default_rng(0)
    rounds, surplus = [], []
    for _ in range(60):
        quota, groups, count = sampling.quota(), [], 0
        while wanted := quota.wanted():
            count += 1
            for _ in range(wanted):
                groups.append([0.0, 1.0] if random.random() < 0.4 else [0.0, 0.0])
                quota.offer(groups[-1])
        rounds.append(count)
        surplus.append(sum(map(teaches, groups)) - quota.kept)
        sampling.finish_step(groups)
        again = DynamicSampling(sampling.config, 16)
        again.load_state_dict(json.loads(json.dumps(sampling.state_dict())))
        assert again.share == sampling.share
    assert abs(sampling.share - 0.4) < 0.15  # five deviations of a running mean of some 50 groups
    assert np.mean(rounds[5:]) < 3
    assert np.mean(surplus[5:]) < 4


@given(
    rewards=st.dictionaries(st.floats(0.1, 2.0), st.floats(0.0, 1.0), min_size=1, max_size=6),
    max_loss=st.floats(0, 0.5),
)
def test_the_temperature_is_the_largest_within_the_loss(rewards, max_loss):
    chosen = choose_temperature(rewards, max_loss)
    best = max(rewards.values())
    assert rewards[chosen] >= best * (1 - max_loss)
    assert all(reward < best * (1 - max_loss) for value, reward in rewards.items() if value > chosen)


def test_the_temperature_rises_when_the_reward_is_stable_and_only_then():
    config = TemperatureConfig(candidates=[1.0, 1.2, 1.4], plateau=PlateauConfig(window=3, min_rise=0.01))
    temperature = DynamicTemperature(1.0, config)
    asked = []

    def held_out(value):
        asked.append(value)
        return 0.8 if value < 1.3 else 0.7

    for step in range(10):
        assert temperature.finish_step(0.05 * step, held_out) is None
    assert asked == []
    tried = [temperature.finish_step(0.5, held_out) for _ in range(6)]
    assert temperature.value == 1.2
    assert [found for found in tried if found] == [{1.0: 0.8, 1.2: 0.8, 1.4: 0.7}]
    state = json.loads(json.dumps(temperature.state_dict()))
    other = DynamicTemperature(1.0, config)
    other.load_state_dict(state)
    assert (other.value, other.state_dict()) == (1.2, temperature.state_dict())


@pytest.mark.parametrize(
    "stages",
    [
        [{"difficulty": "moderate", "until": "step"}],
        [{"difficulty": "moderate"}, {"difficulty": "hard"}],
        [{"difficulty": "any", "last_step": 3}],
        [{"difficulty": "any", "until": "plateau"}],
    ],
)
def test_a_curriculum_that_never_ends_or_never_begins_a_stage_is_refused(stages):
    with pytest.raises(ValidationError):
        CurriculumConfig.model_validate({"stages": stages})
