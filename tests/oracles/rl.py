"""Plain twins of the policy-gradient losses: one answer, one token at a time, in Python's own numbers."""

import math
from collections.abc import Sequence


def advantages(rewards: Sequence[float], estimator: str) -> list[float]:
    """Of the answers of one group."""
    n, mean = len(rewards), sum(rewards) / len(rewards)
    if estimator == "rloo":
        return [reward - (sum(rewards) - reward) / (n - 1) if n > 1 else 0.0 for reward in rewards]
    centred = [reward - mean for reward in rewards]
    if estimator == "centred":
        return centred
    deviation = math.sqrt(sum(value * value for value in centred) / n)
    return [value / deviation if deviation > 1e-6 else 0.0 for value in centred]


def loss(answers: Sequence[Sequence[tuple[float, float, float]]], of_answer: Sequence[float], settings: dict) -> float:
    """Loss of an update.

    Args:
        answers: For each answer its tokens' log-probabilities: current, proximal, behaviour.
        of_answer: Advantage of each answer.
        settings: Fields of `LossConfig`, and `max_tokens`.
    """
    per_answer = []
    for tokens, advantage in zip(answers, of_answer, strict=True):
        mean_log_ratio = sum(current - proximal for current, proximal, _ in tokens) / len(tokens)
        per_answer.append([_token(*token, advantage, mean_log_ratio, settings) for token in tokens])
    if settings["aggregation"] == "token_mean":
        return sum(map(sum, per_answer)) / sum(map(len, per_answer))
    if settings["aggregation"] == "sequence_mean":
        return sum(sum(values) / len(values) for values in per_answer) / len(per_answer)
    return sum(map(sum, per_answer)) / (len(per_answer) * settings["max_tokens"])


def _token(
    current: float, proximal: float, behaviour: float, advantage: float, mean_log_ratio: float, settings: dict
) -> float:
    low, high = 1 - settings["clip_low"], 1 + settings["clip_high"]
    weight = math.exp(proximal - behaviour)
    if settings["importance"]["kind"] == "none":
        weight = 1.0
    elif settings["importance"]["kind"] == "truncated":
        weight = min(max(weight, settings["importance"]["low"]), settings["importance"]["cap"])
    elif not settings["importance"]["low"] <= weight <= settings["importance"]["cap"]:
        weight = 0.0
    if settings["objective"] == "cispo":
        return -weight * min(max(math.exp(current - proximal), low), high) * advantage * current
    ratio = math.exp(mean_log_ratio if settings["objective"] == "gspo" else current - proximal)
    gain = min(ratio * advantage, min(max(ratio, low), high) * advantage)
    if settings["dual_clip"] is not None and advantage < 0:
        gain = max(gain, settings["dual_clip"] * advantage)
    return -weight * gain
