"""Credit: which tokens of an episode get which advantage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmcore.errors import ConfigError
from glmcore.rl.advantage import group_advantages
from glmcore.rl.config import LossConfig
from glmcore.rl.credit import episode_credit, group_teaches, turn_credit
from glmcore.rl.episode_record import EpisodeRecord
from glmcore.trajectory import Sample

LENGTHS = (2, 1, 3)
"""Sampled tokens of the first, second and third message."""


def sample(group, turn_rewards, *, recorded=True, reward=None):
    mask = [bit for turn in range(len(turn_rewards)) for bit in (0, 0, *[1] * LENGTHS[turn % 3])]
    row = np.zeros(len(mask), np.float32)
    extra = EpisodeRecord(turn_rewards).to_bytes() if recorded else b""
    values = dict.fromkeys(Sample._fields) | {
        "group_id": group,
        "ids": row.astype(np.int32),
        "loss_mask": np.array(mask, np.uint8),
        "logprobs": row,
        "reward": sum(turn_rewards) if reward is None else reward,
        "extra": extra,
    }
    return Sample(**values)


def rewards_of(samples):
    return np.array([one.reward for one in samples])


def plain_turn_credit(samples, estimator, discount):
    """The formula, a turn at a time."""
    earned = [EpisodeRecord.from_bytes(one.extra).turn_rewards for one in samples]
    goals = [[sum(discount ** (s - t) * r[s] for s in range(t, len(r))) for t in range(len(r))] for r in earned]
    found = []
    for one, own in zip(samples, goals, strict=True):
        advantages = []
        for turn in range(len(own)):
            others = [
                g[turn]
                for other, g in zip(samples, goals, strict=True)
                if other.group_id == one.group_id and turn < len(g)
            ]
            advantage = own[turn] - np.mean(others)
            if estimator == "grpo":
                advantage = advantage / np.std(others) if np.std(others) > 1e-6 else 0.0
            elif estimator == "rloo":
                advantage = advantage * len(others) / (len(others) - 1) if len(others) > 1 else 0.0
            advantages += [advantage] * LENGTHS[turn % 3]
        found.append(advantages)
    return found


EPISODES = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=5)),
    min_size=1,
    max_size=8,
)


@given(
    episodes=EPISODES,
    estimator=st.sampled_from(["grpo", "centred", "rloo"]),
    discount=st.sampled_from([0.5, 1.0]),
)
def test_a_turn_is_credited_with_what_was_earned_from_it_on(episodes, estimator, discount):
    samples = [sample(group, rewards) for group, rewards in episodes]
    found = turn_credit(samples, rewards_of(samples), estimator, discount)
    for ours, plain in zip(found, plain_turn_credit(samples, estimator, discount), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, plain, atol=1e-5)  # of float32 near 3, the most that grpo gives to 8


@given(rewards=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=8))
def test_with_one_turn_and_one_group_both_ways_are_the_same(rewards):
    samples = [sample(0, [reward]) for reward in rewards]
    for ours, whole in zip(
        turn_credit(samples, rewards_of(samples), "grpo", 1.0),
        episode_credit(samples, rewards_of(samples), "grpo"),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, whole)


def test_the_whole_episode_shares_an_advantage_by_default():
    samples = [sample(0, [0.0, 1.0]), sample(0, [0.0]), sample(1, [1.0, 0.0, 0.0])]
    found = episode_credit(samples, rewards_of(samples), "grpo")
    expected = group_advantages(rewards_of(samples), np.array([0, 0, 1]), "grpo")
    assert [part.tolist() for part in found] == [[expected[0]] * 3, [expected[1]] * 2, [0.0] * 6]


def test_a_reward_counts_for_no_turn_after_it():
    early, late = sample(0, [1.0, 0.0]), sample(0, [0.0, 1.0])
    first, second = turn_credit([early, late], np.array([1.0, 1.0]), "centred", 1.0)
    assert first.tolist() == [0.0, 0.0, -0.5]
    assert second.tolist() == [0.0, 0.0, 0.5]


def test_what_an_episode_gets_beside_its_turns_is_the_last_turns():
    plain, punished = sample(0, [0.5, 0.5]), sample(0, [0.5, 0.5])
    _, less = turn_credit([plain, punished], np.array([1.0, 0.5]), "centred", 1.0)
    assert less.tolist() == [-0.25] * 3
    branch = sample(0, [0.0, 0.0], recorded=False, reward=1.0)
    more, _ = turn_credit([branch, sample(0, [0.0, 0.0])], np.array([1.0, 0.0]), "centred", 1.0)
    assert more.tolist() == [0.5] * 3


def test_a_group_teaches_if_any_of_its_turns_differ():
    samples = [sample(0, [1.0, 0.0]), sample(0, [0.0, 1.0]), sample(1, [1.0]), sample(1, [1.0])]
    turns = turn_credit(samples, rewards_of(samples), "centred", 1.0)
    assert group_teaches(samples, turns).tolist() == [True, True, False, False]
    whole = episode_credit(samples, rewards_of(samples), "centred")
    assert not group_teaches(samples, whole).any()


def test_a_discount_needs_turns():
    with pytest.raises(ConfigError, match="turn_discount"):
        LossConfig.from_dict({"turn_discount": 0.9}, origin="here")
