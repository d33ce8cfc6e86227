"""Which tokens of an episode get which advantage: all the same, or those of each turn their own.

A turn is one message of the policy: a run of sampled tokens. Shapes: N samples, T turns of a sample.
"""

from collections.abc import Sequence

import numpy as np

from glmcore.rl.advantage import MIN_DEVIATION, Estimator, group_advantages
from glmcore.rl.episode_record import EpisodeRecord
from glmcore.trajectory import Sample


def episode_credit(samples: Sequence[Sample], rewards: np.ndarray, estimator: Estimator) -> list[np.ndarray]:
    """Advantage of each sampled token of each sample, float32: that of its whole episode over the group's.

    Args:
        samples: Of whole groups.
        rewards: Of the episodes, float [N].
        estimator: See `group_advantages`.
    """
    advantages = group_advantages(rewards, _group_ids(samples), estimator)
    lengths = [int(sample.loss_mask.sum()) for sample in samples]
    return [np.full(length, advantage) for length, advantage in zip(lengths, advantages, strict=True)]


def turn_credit(
    samples: Sequence[Sample], rewards: np.ndarray, estimator: Estimator, discount: float
) -> list[np.ndarray]:
    """Advantage of each sampled token of each sample, float32: that of its turn.

    The return of turn t of episode i is what it earned from there on, G[i, t] = sum over s >= t of
    discount^(s - t) r[i, s], and its advantage is that of G[i, t] over G[j, t] of all episodes j of the group that had
    a turn t, by the estimator. So a reward counts for the turns that led to it and for none after it. A turn that no
    other episode of the group reached has nothing to be compared with, and gets 0.

    Args:
        samples: Of whole groups. Those that keep no rewards of turns (`Sample.extra`), such as conversations of
            sub-agents, have theirs at the last turn.
        rewards: Of the episodes, float [N]. What it differs by from the sum of an episode's turns, such as a penalty
            for its length, is put on the last turn.
        estimator: See `group_advantages`.
        discount: Of rewards of later turns, in (0, 1].

    Source: the return from t on with a baseline that depends on t is that of G(PO)MDP (Peters and Schaal, Neural
        Networks 21 (2008), 682); turns of a language model as the steps, with advantages within groups, is MT-GRPO
        (arXiv:2505.11821), which adds the advantages of a turn's and of the outcome's reward: here they are one return.
    """
    turns = [_turn_of_token(sample) for sample in samples]
    returns = [
        _returns(_turn_rewards(sample, float(reward), int(turn[-1]) + 1), discount)
        for sample, reward, turn in zip(samples, rewards, turns, strict=True)
    ]
    counts = [len(part) for part in returns]
    places = np.stack(
        [np.repeat(_group_ids(samples), counts), np.concatenate([np.arange(count) for count in counts])], axis=1
    )
    _, compared = np.unique(places, axis=0, return_inverse=True)
    advantages = group_advantages(np.concatenate(returns), compared.reshape(-1), estimator)
    starts = np.cumsum([0, *counts[:-1]])
    return [advantages[start + turn] for start, turn in zip(starts, turns, strict=True)]


def group_teaches(samples: Sequence[Sample], advantages: Sequence[np.ndarray]) -> np.ndarray:
    """Whether any token of a sample's group has an advantage, bool [N]: the others teach nothing.

    Source: dynamic sampling of DAPO (arXiv:2503.14476), section 3.2.
    """
    _, group = np.unique(_group_ids(samples), return_inverse=True)
    teaching = np.zeros(len(samples), np.bool_)
    np.logical_or.at(teaching, group, [bool((np.abs(part) > MIN_DEVIATION).any()) for part in advantages])
    return teaching[group]


def _group_ids(samples: Sequence[Sample]) -> np.ndarray:
    return np.array([sample.group_id for sample in samples])


def _turn_of_token(sample: Sample) -> np.ndarray:
    """Number of the turn of each sampled token, from 0: what is given parts one from the next."""
    mask = sample.loss_mask != 0
    begins = np.diff(mask.astype(np.int8), prepend=0) == 1
    return (np.cumsum(begins) - 1)[mask]


def _turn_rewards(sample: Sample, reward: float, count: int) -> np.ndarray:
    recorded = EpisodeRecord.from_bytes(sample.extra).turn_rewards
    rewards = np.zeros(count)
    rewards[: len(recorded)] = recorded[:count]
    rewards[-1] += reward - rewards.sum()
    return rewards


def _returns(rewards: np.ndarray, discount: float) -> np.ndarray:
    """What was earned from each turn on, float64 [T]."""
    returns = np.empty(len(rewards))
    total = 0.0
    for turn in reversed(range(len(rewards))):
        total = rewards[turn] + discount * total
        returns[turn] = total
    return returns
