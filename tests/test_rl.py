import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import packed, random_model

from glmcore.rl.evaluate import RewardEstimate
from glmcore.rl.logprobs import response_logprobs, shared_response_logprobs
from glmcore.rl.seeds import seed_of
from glmcore.trajectory import Sample


@settings(deadline=None, max_examples=60)
@given(right=st.integers(0, 200), wrong=st.integers(0, 200))
def test_the_interval_is_wilsons(right, wrong):
    if right + wrong == 0:
        return
    estimate = RewardEstimate.from_rewards([1.0] * right + [0.0] * wrong)
    assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    for bound in (estimate.low, estimate.high):
        if 0 < bound < 1:  # a bound is where the score test just rejects
            score = (estimate.mean - bound) / np.sqrt(bound * (1 - bound) / estimate.n)
            assert abs(score) == pytest.approx(1.959964, rel=1e-6)


def test_seeds_of_places_are_distinct_and_fixed():
    seeds = {seed_of(0, step, g, r) for step in range(10) for g in range(10) for r in range(10)}
    assert len(seeds) == 1000
    assert seed_of(0, 1, 2, 3) == seed_of(0, 1, 2, 3)


def test_response_log_probabilities_are_those_of_the_masked_tokens():
    model = random_model()
    samples = []
    for length, prompt in ((9, 4), (5, 1)):
        ids = np.random.default_rng(length).integers(0, 64, length).astype(np.int32)
        mask = (np.arange(length) >= prompt).astype(np.uint8)
        samples.append(
            Sample(
                group_id=0,
                rollout_id=0,
                task="",
                ids=ids,
                loss_mask=mask,
                logprobs=np.zeros(length, np.float32),
                policy_versions=np.zeros(length, np.int32),
                reward=0.0,
                finish_reason="stop",
                failed=None,
            )
        )
    got = response_logprobs(model, samples, temperature=0.7).logprobs
    expected = []
    for sample in samples:
        _, positions, layout = packed([len(sample.ids)])
        ids = torch.from_numpy(sample.ids.astype(np.int64))
        logprobs = (model.logits(model(ids, positions, layout).hidden) / 0.7).log_softmax(-1)
        expected += [logprobs[t - 1, ids[t]] for t in range(len(ids)) if sample.loss_mask[t]]
    torch.testing.assert_close(got, torch.stack(expected))


def test_sharing_prompts_changes_neither_log_probabilities_nor_gradients():
    model = random_model()
    generator = np.random.default_rng(0)
    samples = []
    for group in range(3):
        prompt = generator.integers(0, 50, 10 + group)
        for rollout in range(4):
            ids = np.concatenate((prompt, generator.integers(0, 50, 3 + rollout))).astype(np.int32)
            mask = (np.arange(len(ids)) >= len(prompt)).astype(np.uint8)
            zeros = np.zeros(len(ids), np.float32)
            samples.append(Sample(group, rollout, "task", ids, mask, zeros, mask.astype(np.int32), 0.0, "stop", None))
    gradients = []
    for logprobs in (response_logprobs, shared_response_logprobs):
        found = logprobs(model, samples, 0.7).logprobs
        model.zero_grad()
        (found.exp() * torch.linspace(-1, 1, len(found))).sum().backward()
        gradients.append((found.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (one, ones), (other, others) = gradients
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
    for name, grad in ones.items():
        torch.testing.assert_close(others[name], grad, rtol=1e-8, atol=1e-9)
