import math
from types import SimpleNamespace

import numpy as np
import oracles.rl as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import random_model

from glmcore.errors import ConfigError
from glmcore.rl.advantage import group_advantages, has_signal
from glmcore.rl.aggregation import token_weights
from glmcore.rl.config import ImportanceConfig, LossConfig, OverlongConfig
from glmcore.rl.logprobs import linear_logprobs
from glmcore.rl.loss import PolicyTokens, kl_estimate, policy_loss
from glmcore.rl.reference import reference_policy
from glmcore.rl.shaping import in_loss, length_penalty, shaped_rewards

LOGPROB = st.floats(-4, 0)


def tokens_of(answers, of_answer, weights=None, **fields) -> PolicyTokens:
    """Answers given as lists of (current, proximal, behaviour), float64."""
    flat = torch.tensor([token for tokens in answers for token in tokens], dtype=torch.float64)
    lengths = torch.tensor([len(tokens) for tokens in answers])
    each = torch.full((len(answers),), 1.0 / int(lengths.sum())) if weights is None else torch.as_tensor(weights)
    return PolicyTokens(
        flat[:, 0].clone().requires_grad_(),
        flat[:, 1],
        flat[:, 2],
        torch.tensor(of_answer, dtype=torch.float64).repeat_interleave(lengths),
        each.double().repeat_interleave(lengths),
        torch.arange(len(answers)).repeat_interleave(lengths),
        **fields,
    )


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6), min_size=1, max_size=5),
    estimator=st.sampled_from(["grpo", "centred", "rloo"]),
    seed=st.integers(0, 100),
)
def test_advantages_are_those_of_each_group_whatever_its_size_and_order(groups, estimator, seed):
    rewards = np.array([reward for group in groups for reward in group])
    ids = np.array([100 - i for i, group in enumerate(groups) for _ in group])
    order = np.random.default_rng(seed).permutation(len(rewards))
    advantages = np.empty(len(rewards))
    advantages[order] = group_advantages(rewards[order], ids[order], estimator)
    for i, group in enumerate(groups):
        np.testing.assert_allclose(advantages[ids == 100 - i], oracle.advantages(group, estimator), atol=2e-3)
        assert abs(advantages[ids == 100 - i].sum()) < 1e-3


def test_only_groups_whose_rewards_differ_teach():
    rewards, ids = np.array([1.0, 0.0, 1.0, 1.0, 0.5]), np.array([7, 3, 7, 3, 9])
    assert has_signal(rewards, ids).tolist() == [False, True, False, True, False]


@settings(deadline=None, max_examples=150)
@given(
    answers=st.lists(st.lists(st.tuples(LOGPROB, LOGPROB, LOGPROB), min_size=1, max_size=5), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    objective=st.sampled_from(["ppo", "gspo", "cispo"]),
    dual_clip=st.sampled_from([None, 3.0]),
    aggregation=st.sampled_from(["token_mean", "sequence_mean", "fixed_length"]),
    kind=st.sampled_from(["truncated", "masked", "none"]),
)
def test_every_loss_equals_its_plain_twin(answers, seed, objective, dual_clip, aggregation, kind):
    config = LossConfig(
        objective=objective,
        dual_clip=None if objective == "cispo" else dual_clip,
        aggregation=aggregation,
        importance=ImportanceConfig(kind=kind, low=0.5, cap=2.0),
    )
    of_answer = np.random.default_rng(seed).normal(size=len(answers)).tolist()
    weights = token_weights(np.array([len(tokens) for tokens in answers]), aggregation, max_tokens=7)
    expected = oracle.loss(answers, of_answer, config.model_dump() | {"max_tokens": 7})
    found = policy_loss(tokens_of(answers, of_answer, weights), config).loss.detach()
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("objective", ["ppo", "gspo", "cispo"])
def test_on_policy_gradients_are_those_of_the_plain_policy_gradient(objective):
    answers = [[(-1.0, -1.0, -1.0), (-2.0, -2.0, -2.0)], [(-0.5, -0.5, -0.5)]]
    tokens = tokens_of(answers, [2.0, -1.0])
    result = policy_loss(tokens, LossConfig(objective=objective))
    result.loss.backward()
    torch.testing.assert_close(tokens.current.grad, torch.tensor([-2.0, -2.0, 1.0], dtype=torch.float64) / 3)
    assert result.figures() == {"clip_fraction": 0, "kl_behaviour": pytest.approx(0), "correction_fraction": 0}


def test_the_clip_stops_the_gradient_only_where_it_would_go_further():
    tokens = tokens_of([[(0.5, 0, 0)], [(-0.5, 0, 0)], [(0.5, 0, 0)], [(-0.5, 0, 0)]], [1.0, -1.0, -1.0, 1.0])
    result = policy_loss(tokens, LossConfig())
    result.loss.backward()
    assert (tokens.current.grad != 0).tolist() == [False, False, True, True]
    assert result.clip_fraction == 0.5


def test_cispo_clips_the_weight_of_a_token_and_keeps_its_gradient():
    tokens = tokens_of([[(0.5, 0, 0), (0.0, 0, 0)]], [1.0])
    policy_loss(tokens, LossConfig(objective="cispo")).loss.backward()
    torch.testing.assert_close(tokens.current.grad, torch.tensor([-1.28, -1.0], dtype=torch.float64) / 2)


def test_gspo_clips_whole_answers():
    far = [(0.9, 0, 0), (0.0, 0, 0)]  # its geometric mean is beyond the clip, its second token alone is not
    tokens = tokens_of([far], [1.0])
    result = policy_loss(tokens, LossConfig(objective="gspo"))
    result.loss.backward()
    assert tokens.current.grad.tolist() == [0, 0]
    assert result.clip_fraction == 1


def test_dual_clip_bounds_what_a_bad_answer_can_cost():
    tokens = tokens_of([[(3.0, 0, 0)]], [-1.0])
    result = policy_loss(tokens, LossConfig(dual_clip=3.0))
    result.loss.backward()
    assert float(result.loss.detach()) == pytest.approx(3.0)
    assert tokens.current.grad.tolist() == [0]


def test_importance_weights_are_truncated_or_masked():
    answers = [[(0.0, 0.0, -5.0), (0.0, 0.0, 0.2)]]
    for kind, first in (("truncated", 2.0), ("masked", 0.0), ("none", 1.0)):
        tokens = tokens_of(answers, [1.0])
        result = policy_loss(tokens, LossConfig(importance=ImportanceConfig(kind=kind)))
        result.loss.backward()
        second = 1.0 if kind == "none" else math.exp(-0.2)
        torch.testing.assert_close(tokens.current.grad, -torch.tensor([first, second], dtype=torch.float64) / 2)
        assert result.correction_fraction == (0 if kind == "none" else 0.5)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimates_have_the_means_and_gradients_that_they_promise(kind):
    scores = torch.randn(6, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(6, dtype=torch.float64).log_softmax(0)
    current = scores.log_softmax(0)
    divergence = (current.exp() * (current - reference)).sum()
    (expected,) = torch.autograd.grad(divergence, scores, retain_graph=True)
    probability = current.exp().detach()
    mean = (probability * kl_estimate(current, reference, kind)).sum()  # over every token there is, as it is drawn
    (gradient,) = torch.autograd.grad(mean, scores)
    if kind == "k2":
        torch.testing.assert_close(gradient, expected)
    else:
        torch.testing.assert_close(mean, divergence)
    if kind != "k1":
        assert (kl_estimate(current, reference, kind) >= 0).all()


def test_a_kl_term_pulls_towards_the_reference():
    tokens = tokens_of([[(-1.0, -1.0, -1.0)]], [0.0], reference=torch.tensor([-2.0], dtype=torch.float64))
    result = policy_loss(tokens, LossConfig(kl="k3", kl_weight=0.5))
    result.loss.backward()
    assert result.kl_reference == pytest.approx(math.exp(-1))
    torch.testing.assert_close(tokens.current.grad, torch.tensor([0.5 * (1 - math.exp(-1))], dtype=torch.float64))


def test_weights_add_up_to_one_and_leave_out_what_has_no_loss():
    lengths = np.array([3, 0, 5])
    for aggregation in ("token_mean", "sequence_mean"):
        assert (token_weights(lengths, aggregation, 10) * lengths).sum() == pytest.approx(1)
    assert (token_weights(lengths, "fixed_length", 10) * lengths).sum() == pytest.approx(8 / 20)


def test_the_length_penalty_grows_over_the_tolerated_tokens():
    assert length_penalty(np.array([5, 60, 80, 100, 120]), 100, 40).tolist() == [0, 0, -0.5, -1, -1]
    rewards = shaped_rewards(np.array([1.0]), np.array([80]), 100, OverlongConfig(penalty_tokens=40))
    assert rewards.tolist() == [0.5]
    assert shaped_rewards(np.array([1.0]), np.array([80]), 100, OverlongConfig()).tolist() == [1.0]
    assert in_loss(["stop", "length", None], OverlongConfig(filter=True)).tolist() == [True, False, True]
    assert in_loss(["stop", "length"], OverlongConfig()).all()


@settings(deadline=None, max_examples=20)
@given(num_tokens=st.integers(1, 40), temperature=st.floats(0.2, 2), seed=st.integers(0, 2**31))
def test_linear_logprobs_equal_the_plain_ones_and_so_do_gradients_and_entropy(num_tokens, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(16, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    ids = torch.randint(0, 16, (num_tokens,), generator=generator)
    direction = torch.randn(num_tokens, dtype=torch.float64, generator=generator)
    plain = (hidden @ weight.T / temperature).log_softmax(-1)
    expected = torch.autograd.grad((plain[torch.arange(num_tokens), ids] * direction).sum(), (hidden, weight))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glmcore.rl.logprobs.CHUNK_BYTES", 4 * 16 * 7)  # seven tokens at once
        found = linear_logprobs(hidden, weight, ids, temperature)
        gradients = torch.autograd.grad((found.logprobs * direction).sum(), (hidden, weight))
    torch.testing.assert_close(found.logprobs, plain[torch.arange(num_tokens), ids])
    torch.testing.assert_close(found.entropy, -(plain.exp() * plain).sum(-1))
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kl": "k3"}, "kl_weight"),
        ({"kl_weight": 0.1}, "kl"),
        ({"objective": "cispo", "dual_clip": 3.0}, "dual_clip"),
        ({"importance": {"low": 3.0}}, "below cap"),
    ],
)
def test_parts_of_a_loss_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        LossConfig.from_dict(fields, origin="test")


def test_the_reference_is_the_policy_that_the_stage_began_with(tmp_path):
    model = random_model()
    run = SimpleNamespace(path=tmp_path)
    first = reference_policy(run, model)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)  # a step of training
    later = reference_policy(run, model)
    for ours, theirs in zip(first.parameters(), later.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad
    assert not torch.equal(later.lm_head.weight, model.lm_head.weight)
