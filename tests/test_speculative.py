"""Drafts by the MTP layer change the speed and nothing else."""

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling import plain_kept, plain_softmax

from glmcore.engine.config import EngineConfig
from glmcore.engine.engine import Engine
from glmcore.engine.request import Generation
from glmcore.engine.sampler import Sampler
from glmcore.engine.sampling import SamplingParams
from glmcore.engine.speculative import draft, verify
from glmcore.errors import ConfigError
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.layout import DocumentLayout

VOCAB = 24


def new_model(vocab_size: int = VOCAB, **changes) -> Glm:
    """A model whose MTP layer often agrees with it: both lean on the newest token alone."""
    config = GlmConfig(**{**TINY, "vocab_size": vocab_size, "num_nextn_predict_layers": 1, **changes})
    with torch.device("meta"):
        empty = Glm(config)
    model = empty.to_empty(device="cpu").init_weights(5)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(40)
        model.lm_head.weight.mul_(25)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(20)
        if model.mtp_layer is not None:
            joined = torch.cat([torch.eye(config.hidden_size), 0.2 * torch.eye(config.hidden_size)], 1)
            model.mtp_layer.eh_proj.weight.copy_(joined)
    return model


@pytest.fixture(scope="module")
def model():
    return new_model()


def run(model, requests, **config) -> tuple[list[list[Generation]], Engine]:
    engine = Engine(model, [1], config=EngineConfig(**config))
    ids = [engine.add(prompt, params) for prompt, params in requests]
    results = {
        number: [Generation() for _ in range(params.n)] for number, (_, params) in zip(ids, requests, strict=True)
    }
    while engine.has_work:
        for number, delta in engine.step():
            results[number][delta.index].add(delta)
    return [results[number] for number in ids], engine


def ids_of(results: list[list[Generation]]) -> list[list[list[int]]]:
    return [[each.token_ids for each in choices] for choices in results]


PROMPT = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=40)
SCHEDULE = st.fixed_dictionaries(
    {
        "max_sequences": st.integers(1, 5),
        "max_step_tokens": st.sampled_from([1, 3, 7, 64]),
        "cache_tokens": st.sampled_from([80, 160, 10_000]),
        "reuse_prefixes": st.booleans(),
    }
)


@st.composite
def requests(draw, temperature):
    """Requests of which some begin alike."""
    common = draw(PROMPT)
    prompts = [common[: draw(st.integers(0, len(common)))] + draw(PROMPT)[:8] for _ in range(draw(st.integers(1, 4)))]
    return [
        (
            prompt,
            SamplingParams(
                max_tokens=draw(st.integers(1, 16)),
                temperature=temperature,
                seed=draw(st.integers(0, 99)),
                n=draw(st.sampled_from([1, 1, 2])),
                top_k=draw(st.sampled_from([0, 0, 4])),
                top_p=draw(st.sampled_from([1.0, 0.8])),
                frequency_penalty=draw(st.sampled_from([0.0, 0.0, 1.0])),
                top_logprobs=draw(st.sampled_from([0, 2])),
            ),
        )
        for prompt in prompts
    ]


@settings(max_examples=15)
@given(asked=requests(temperature=0.0), schedule=SCHEDULE, drafts=st.integers(1, 3))
def test_without_temperature_the_tokens_are_those_without_drafts(model, asked, schedule, drafts):
    plain, _ = run(model, asked)
    drafted, _ = run(model, asked, num_draft_tokens=drafts, **schedule)
    assert ids_of(drafted) == ids_of(plain)
    for many, few in zip(drafted, plain, strict=True):
        for one, other in zip(many, few, strict=True):
            # float32 sums in another order: some 1e-6 of scores that are below 100.
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-4)
            assert one.finish_reason == other.finish_reason
            assert [list(top) for top in one.top_logprobs] == [list(top) for top in other.top_logprobs]


@settings(max_examples=15)
@given(asked=requests(temperature=1.0), schedule=SCHEDULE, drafts=st.integers(1, 3))
def test_a_seed_gives_the_same_tokens_whatever_the_schedule_and_the_cache(model, asked, schedule, drafts):
    together, _ = run(model, asked, num_draft_tokens=drafts, **schedule)
    for request, results in zip(asked, together, strict=True):
        [alone], _ = run(model, [request], num_draft_tokens=drafts, reuse_prefixes=False)
        assert [each.token_ids for each in alone] == [each.token_ids for each in results]


def test_a_sequence_that_was_interrupted_goes_on_with_drafts_as_if_it_had_not_been(model):
    hot = {"temperature": 1.0, "seed": 0}
    asked = [
        ([2], SamplingParams(max_tokens=3, top_p=0.8, **hot)),
        ([2] * 6 + [4] + [2] * 7, SamplingParams(max_tokens=4, n=2, **hot)),
        ([2], SamplingParams(max_tokens=3, top_p=0.8, **hot)),
    ]
    cramped, engine = run(model, asked, num_draft_tokens=1, cache_tokens=80, reuse_prefixes=False)
    roomy, _ = run(model, asked, num_draft_tokens=1)
    assert engine.stats().preemptions > 0
    assert ids_of(cramped) == ids_of(roomy)


def test_drafts_save_steps(model):
    asked = [([5, 6, 7], SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True))]
    steps = []
    for drafts in (0, 1, 3):
        engine = Engine(model, [1], config=EngineConfig(num_draft_tokens=drafts))
        engine.add(*asked[0])
        steps.append(0)
        while engine.has_work:
            engine.step()
            steps[-1] += 1
    assert steps[0] == 60
    assert steps[2] < steps[1] < 48  # more than a quarter of the drafts stay


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.8, "min_p": 0.05}])
def test_verified_tokens_follow_the_distribution_of_the_model(fields):
    count, size, num_drafts = 20_000, 6, 2
    generator = torch.Generator().manual_seed(1)
    model_scores = torch.randn(num_drafts + 1, size, generator=generator) * 1.5
    mtp_scores = model_scores[:-1] + torch.randn(num_drafts, size, generator=generator) * 0.7
    sampler = Sampler(size)
    slots = [sampler.admit(SamplingParams(seed=seed, **fields), [0]) for seed in range(count)]
    drawn = [draft(sampler, mtp_scores[i].expand(count, -1).clone(), slots, i) for i in range(num_drafts)]
    tokens, probability = (torch.stack(part, 1) for part in zip(*drawn, strict=True))
    verified = verify(sampler, model_scores.expand(count, -1, -1).clone(), slots, tokens, probability)
    params = SamplingParams(**fields)
    assert {len(ids) for ids in verified.tokens} == {1, 2, 3}
    for place in range(num_drafts + 1):
        kept = dict(plain_kept(plain_softmax(model_scores[place].tolist(), params.temperature), params))
        counts = np.bincount([ids[place] for ids in verified.tokens if len(ids) > place], minlength=size)
        expected = np.array([kept.get(token, 0.0) for token in range(size)])
        expected *= counts.sum() / expected.sum()
        assert (counts[expected == 0] == 0).all()
        mass = expected > 0
        assert (
            float(((counts - expected)[mass] ** 2 / expected[mass]).sum()) < 20.5
        )  # the 0.1% point, 5 degrees of freedom


def test_texts_of_an_engine_with_drafts_follow_the_distribution_of_the_model():
    size, count, prompt = 6, 4_000, [3, 4]
    model = new_model(size)
    asked = [(prompt, SamplingParams(max_tokens=3, seed=seed, ignore_eos=True)) for seed in range(count)]
    results, _ = run(model, asked, num_draft_tokens=2, max_waiting=count)
    counts = np.zeros((size, size, size))
    for [result] in results:
        counts[tuple(result.token_ids)] += 1
    expected = np.zeros_like(counts)
    texts = torch.cartesian_prod(*[torch.arange(size)] * 2)
    with torch.no_grad():
        ids = torch.cat([torch.tensor(prompt).expand(len(texts), -1), texts], 1)
        length = ids.shape[1]
        layout = DocumentLayout.from_cu_seqlens(np.arange(0, ids.numel() + 1, length).astype(np.int32))
        hidden = model(ids.flatten(), torch.arange(length).repeat(len(texts)), layout).hidden
        logprob = model.logits(hidden).log_softmax(-1).view(len(texts), length, size)
    for (first, second), row in zip(texts.tolist(), logprob, strict=True):
        expected[first, second] = (row[1, first] + row[2, second] + row[3]).exp().numpy() * count
    often = expected > 5
    statistic = float(((counts - expected)[often] ** 2 / expected[often]).sum())
    assert often.sum() > 10
    # Mean and standard deviation of a chi-square are d and sqrt(2 d); four of those beyond is below 0.1%.
    assert statistic < often.sum() + 4 * np.sqrt(2 * often.sum())


def test_the_layer_reads_from_its_cache_what_it_reads_at_once(model):
    prompt = list(range(2, 22)) * 2
    engine = Engine(model, [1], config=EngineConfig(num_draft_tokens=1, max_step_tokens=7))
    drafter = engine._drafter
    assert drafter is not None
    for again in range(2):  # the second time the cache has the blocks of the first
        number = engine.add(prompt, SamplingParams(max_tokens=20, seed=again, ignore_eos=True, temperature=1.0))
        text = list(prompt)
        while engine.has_work:
            deltas = engine.step()
            if drafter.drafts is not None and deltas:
                ids = torch.tensor(text)
                layout = DocumentLayout.from_cu_seqlens(np.array([0, len(text)], np.int32))
                with torch.no_grad():
                    places = torch.arange(len(text))
                    hidden = model(ids, places, layout).hidden
                    before = torch.cat([torch.zeros(1, hidden.shape[1]), hidden[:-1]])
                    angles = model._angles(places)
                    state = model.mtp_layer(before, model.model.embed_tokens(ids), angles, layout)[0][-1]
                    expected = model.logits(state).softmax(-1)
                # Probabilities from float32 scores of some tens, whose rounding is some 1e-5.
                torch.testing.assert_close(drafter.drafts.probability[0, 0], expected, rtol=1e-3, atol=1e-5)
            text += [token for request, delta in deltas if request == number for token in delta.token_ids]


def test_a_model_without_an_mtp_layer_makes_no_drafts():
    with pytest.raises(ConfigError, match="this one has none"):
        Engine(new_model(num_nextn_predict_layers=0), [1], config=EngineConfig(num_draft_tokens=1))
