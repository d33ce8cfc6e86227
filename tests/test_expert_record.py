"""The engine tells which experts its tokens chose, and schedules change nothing about it."""

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_exact import REQUEST, drive
from test_model import random_model
from test_speculative import new_model

from glmcore.engine.config import EngineConfig
from glmcore.engine.engine import Engine
from glmcore.engine.request import Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.errors import ConfigError
from glmcore.fp8 import WeightPublisher
from glmcore.model.glm import Glm
from glmcore.model.layout import DocumentLayout
from glmcore.model.paged import BLOCK

MODEL = random_model(torch.float32)
NUM_LAYERS = 2  # of TINY's three layers the first is dense


def engine(model: Glm = MODEL, **config: object) -> Engine:
    return Engine(model, [1, 2], config=EngineConfig(record_experts=True, **config))


def chosen_by(model: Glm, ids: list[int]) -> np.ndarray:
    """What the modules of a model choose in one pass over a text, sorted, [T, L, K]."""
    layout = DocumentLayout.from_cu_seqlens(np.array([0, len(ids)], np.int32))
    with torch.no_grad():
        routings = model(torch.tensor(ids), torch.arange(len(ids)), layout).routings
    return torch.stack([routing.expert for routing in routings], 1).sort(-1).values.numpy()


def sets(generation: Generation) -> np.ndarray:
    assert generation.experts is not None
    return np.sort(generation.experts, -1)


@settings(max_examples=40)
@given(
    requests=st.lists(REQUEST, min_size=1, max_size=7),
    max_sequences=st.integers(1, 8),
    max_step_tokens=st.integers(1, 80),
    blocks=st.integers(5, 30),
    reuse=st.booleans(),
)
def test_prefix_hits_chunks_and_preemption_give_the_record_of_a_straight_run(
    requests, max_sequences, max_step_tokens, blocks, reuse
):
    generator = engine(
        max_sequences=max_sequences, max_step_tokens=max_step_tokens, cache_tokens=blocks * BLOCK, reuse_prefixes=reuse
    )
    together = drive(generator, requests)
    for index, (prompt, count, temperature, _, _) in enumerate(requests):
        params = SamplingParams(max_tokens=count, temperature=temperature, seed=index)
        [alone] = engine(reuse_prefixes=False).generate([prompt], [params])
        assert alone.experts is not None
        assert alone.experts.dtype == np.uint8
        assert alone.experts.shape == (len(prompt) + len(alone.token_ids) - 1, NUM_LAYERS, TINY["num_experts_per_tok"])
        np.testing.assert_array_equal(together[index].experts, alone.experts)


@pytest.mark.parametrize("fields", [{}, {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # by the Rust core, and by the modules
def test_the_record_is_what_the_modules_choose(dtype, fields):
    model = random_model(dtype, **fields)
    prompt = np.random.default_rng(0).integers(3, 64, 30).tolist()
    [generation] = engine(model, max_step_tokens=8).generate([prompt], [SamplingParams(max_tokens=20, seed=3)])
    expected = chosen_by(model, prompt + generation.token_ids)[:-1]
    np.testing.assert_array_equal(sets(generation), expected)


def test_continuations_of_a_prompt_share_its_record_also_when_one_loses_its_place():
    prompt = np.random.default_rng(1).integers(3, 64, 40).tolist()
    generator = engine(cache_tokens=6 * BLOCK)
    number = generator.add(prompt, SamplingParams(max_tokens=30, n=4, seed=0, stop_token_ids=()))
    results = [Generation() for _ in range(4)]
    while generator.has_work:
        for _, delta in generator.step():
            results[delta.index].add(delta)
    assert number == 0
    assert generator.stats().preemptions > 0
    for generation in results:
        np.testing.assert_array_equal(sets(generation), chosen_by(MODEL, prompt + generation.token_ids)[:-1])


def test_drafts_leave_no_trace_whether_they_stay_or_not():
    model = new_model()
    generator = Engine(model, [1], config=EngineConfig(record_experts=True, num_draft_tokens=3))
    prompts = [np.random.default_rng(seed).integers(2, 24, 20).tolist() for seed in range(4)]
    params = [SamplingParams(max_tokens=25, seed=seed) for seed in range(4)]
    found = generator.generate(prompts, params)
    stats = generator.stats()
    assert 0 < stats.kept_drafts < stats.drafts
    for prompt, generation in zip(prompts, found, strict=True):
        np.testing.assert_array_equal(sets(generation), chosen_by(model, prompt + generation.token_ids)[:-1])


def test_under_new_weights_tokens_keep_the_choices_that_they_were_drawn_with():
    generator, prompt, before = engine(random_model(torch.float32)), list(range(3, 33)), 12
    new = random_model(torch.float32).init_weights(seed=9).state_dict()

    def update(step: int) -> None:
        if step == before:
            generator.update_weights(1, WeightPublisher(precision="bf16").publish(1, new))

    [generation] = drive(generator, [(prompt, 25, 1.0, 0, 0)], update)
    assert generation.policy_versions == [0] * before + [1] * (25 - before)
    ids = prompt + generation.token_ids
    first_new = len(prompt) + before - 1  # the token before the first one that the new weights drew
    np.testing.assert_array_equal(sets(generation)[:first_new], chosen_by(MODEL, ids)[:first_new])
    np.testing.assert_array_equal(sets(generation)[first_new:], chosen_by(generator.model, ids)[first_new:-1])


def test_what_is_ended_early_tells_what_it_has():
    generator = engine()
    prompt = list(range(3, 30))
    number = generator.add(prompt, SamplingParams(max_tokens=30, seed=0, stop_token_ids=()))
    waiting = generator.add(prompt, SamplingParams(max_tokens=30, seed=1))
    generation = Generation()
    for step in range(6):
        if step == 0:
            generator.abort(waiting)
        for told, delta in generator.step():
            if told == number:
                generation.add(delta)
            else:
                assert delta.experts is None
    generator.abort(number)
    generation.add(generator.take_aborted()[0][1])
    assert generation.finish_reason == "abort"
    ids = prompt + generation.token_ids
    np.testing.assert_array_equal(sets(generation), chosen_by(MODEL, ids)[:-1])


def test_nothing_is_told_unless_it_is_asked_for_and_a_dense_model_has_nothing_to_tell():
    [generation] = Engine(MODEL, [1]).generate([[3, 4, 5]], [SamplingParams(max_tokens=4)])
    assert generation.experts is None
    with pytest.raises(ConfigError, match="record_experts needs a model with routed experts"):
        engine(random_model(torch.float32, first_k_dense_replace=3))
