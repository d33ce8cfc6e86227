"""Drawing for a whole batch, against a plain twin of one sequence."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glmcore.engine.drawing import draw, most_likely
from glmcore.engine.sampler import Sampler
from glmcore.engine.sampling import STREAM_TOKEN, SamplingParams, uniforms
from glmcore.errors import RequestError

VOCAB = 150
"""More than two groups of the cumulative sum, and no multiple of them."""
STOPS = (7, 8)

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.3]),
    top_k=st.sampled_from([0, 0, 1, 5, 1000]),
    min_p=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.4]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-math.inf, -1.0, 2.0]), max_size=3),
    seed=st.integers(0, 2**64 - 1),
    min_tokens=st.sampled_from([0, 0, 3]),
    top_logprobs=st.sampled_from([0, 0, 4]),
)


def plain_scores(logits: list[float], params: SamplingParams, prompt: list[int], text: list[int]) -> list[float]:
    """Scores of the next token of one sequence after all edits."""
    scores = []
    for token, score in enumerate(logits):
        score += max(params.logit_bias.get(token, 0.0), -1e9)
        if len(text) < params.min_tokens and token in STOPS:
            score += -1e9
        if token in prompt or token in text:
            score = score / params.repetition_penalty if score > 0 else score * params.repetition_penalty
        score -= params.frequency_penalty * text.count(token)
        score -= params.presence_penalty * (token in text)
        scores.append(score)
    return scores


def plain_softmax(scores: list[float], temperature: float) -> list[float]:
    heat = temperature or 1.0
    peak = max(scores)
    exponentials = [math.exp((score - peak) / heat) for score in scores]
    return [each / sum(exponentials) for each in exponentials]


def plain_kept(probability: list[float], params: SamplingParams) -> list[tuple[int, float]]:
    """Tokens that truncation leaves, most likely first."""
    order = sorted(range(len(probability)), key=lambda token: (-probability[token], token))
    ranked = order[: params.top_k] if params.top_k else order
    total = sum(probability[token] for token in ranked)
    kept, before = [], 0.0
    for rank, token in enumerate(ranked):
        in_nucleus = params.top_p == 1 or before < params.top_p * total
        if rank and not (in_nucleus and probability[token] >= params.min_p * probability[order[0]]):
            break
        kept.append((token, probability[token]))
        before += probability[token]
    return kept


def spread(rows: int, seed: int) -> torch.Tensor:
    """Scores of which no two are so near each other that rounding could swap them."""
    values = torch.linspace(-6, 6, VOCAB)
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([values[torch.randperm(VOCAB, generator=generator)] for _ in range(rows)])


@settings(max_examples=60)
@given(params=st.lists(PARAMS, min_size=1, max_size=6), seed=st.integers(0, 1000), data=st.data())
def test_a_batch_draws_what_the_plain_twin_draws_for_each_sequence(params, seed, data):
    sampler = Sampler(VOCAB)
    prompts = [data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=5)) for _ in params]
    slots = [sampler.admit(p, prompt, stop_ids=STOPS) for p, prompt in zip(params, prompts, strict=True)]
    texts: list[list[int]] = [[] for _ in params]
    for step in range(4):
        logits = spread(len(params), seed + step)
        drawn = sampler.draw(logits.clone(), slots)
        for i, param in enumerate(params):
            scores = plain_scores(logits[i].tolist(), param, prompts[i], texts[i])
            own = plain_softmax(logits[i].tolist(), param.temperature)
            token = int(drawn.tokens[i])
            if param.temperature == 0:
                assert scores[token] >= max(scores) - 1e-5
            else:
                kept = dict(plain_kept(plain_softmax(scores, param.temperature), param))
                # A token on the edge of the nucleus may fall to either side of it by rounding.
                loose = SamplingParams(
                    top_k=param.top_k, top_p=min(1.0, param.top_p + 1e-5), min_p=param.min_p * 0.9999
                )
                assert token in kept or token in dict(plain_kept(plain_softmax(scores, param.temperature), loose))
            # float32: some units of 6e-8 in a probability that is at least e**-24.
            assert float(drawn.logprobs[i]) == pytest.approx(math.log(own[token]), abs=1e-5)
            if param.top_logprobs:
                expected = sorted(range(VOCAB), key=lambda t: -own[t])[: param.top_logprobs]
                assert list(drawn.top_logprobs[i]) == expected
                values = [math.log(own[t]) for t in expected]
                assert list(drawn.top_logprobs[i].values()) == pytest.approx(values, abs=1e-5)
            else:
                assert i not in drawn.top_logprobs
            texts[i].append(token)


@settings(max_examples=40)
@given(params=PARAMS, others=st.lists(PARAMS, max_size=5), seed=st.integers(0, 1000))
def test_a_sequence_draws_the_same_whatever_else_is_in_the_batch(params, others, seed):
    alone, among = Sampler(VOCAB), Sampler(VOCAB)
    slot = alone.admit(params, [1, 2], stop_ids=STOPS)
    gone = among.admit(SamplingParams(frequency_penalty=1.0, logit_bias={3: 1.0}), [5])
    among.draw(spread(1, 3), [gone])
    among.release(gone)
    slots = [among.admit(other, [9]) for other in others]
    slots.insert(len(slots) // 2, among.admit(params, [1, 2], stop_ids=STOPS))
    place = len(others) // 2
    for step in range(4):
        logits = torch.randn(len(slots), VOCAB, generator=torch.Generator().manual_seed(seed + step)) * 3
        one = alone.draw(logits[place : place + 1].clone(), [slot])
        many = among.draw(logits.clone(), slots)
        assert (one.tokens[0], one.logprobs[0]) == (many.tokens[place], many.logprobs[place])
        assert one.top_logprobs.get(0) == many.top_logprobs.get(place)


def test_what_min_p_leaves_out_still_counts_for_the_nucleus_of_what_top_k_kept():
    probability = torch.tensor([[0.1, 0.3, 0.04, 0.2, 0.3, 0.06]])
    params = SamplingParams(top_k=6, top_p=0.75, min_p=0.35)  # 0.75 of 1, not of the 0.8 that min_p leaves
    limits = (torch.tensor([limit]) for limit in (params.top_k, params.top_p, params.min_p))
    kept, ids = most_likely(probability, *limits)
    assert ids[kept > 0].tolist() == [token for token, _ in plain_kept(probability[0].tolist(), params)] == [1, 4, 3]


@settings(max_examples=60)
@given(params=st.lists(PARAMS, min_size=1, max_size=6), size=st.sampled_from([1, 15, 16, 64, 65, 150]), data=st.data())
def test_the_core_draws_what_torch_draws(params, size, data):
    scores = torch.tensor(
        [data.draw(st.lists(st.floats(-30, 30, width=32), min_size=size, max_size=size)) for _ in params]
    )
    for place, broken in data.draw(
        st.dictionaries(st.integers(0, len(params) - 1), st.sampled_from([math.nan, math.inf, -math.inf]), max_size=1)
    ).items():
        scores[place, data.draw(st.integers(0, size - 1))] = broken
    sampler = Sampler(size)
    own = [
        SamplingParams(
            temperature=param.temperature, top_p=param.top_p, top_k=param.top_k, min_p=param.min_p, seed=param.seed
        )
        for param in params
    ]
    rows = sampler.rows([sampler.admit(param, [0]) for param in own])
    tokens, logprobs, broken = sampler._draw_in_core(scores.clone(), rows)
    expected, expected_logprobs, expected_broken = sampler._draw_in_torch(scores.clone(), rows)
    assert broken == expected_broken
    for row, param in enumerate(own):
        if row not in broken and tokens[row] != expected[row]:
            # Both lie where the random number, or the end of what is kept, falls between two tokens up to rounding.
            probability = plain_softmax(scores[row].tolist(), param.temperature)
            kept = plain_kept(probability, param) if param.truncates else list(enumerate(probability))
            weights = np.array([weight for _, weight in kept])
            reached = np.cumsum(weights)
            target = float(sampler.uniforms(rows, STREAM_TOKEN)[row]) * reached[-1]
            edges = [*abs(reached - target), *abs(reached - param.top_p), *abs(weights / weights.max() - param.min_p)]
            assert param.temperature > 0
            assert min(edges) < 1e-5
        elif row not in broken:
            # The log of a float32 sum of up to 150 terms: units of 6e-8, and of the score itself, up to 120.
            torch.testing.assert_close(logprobs[row], expected_logprobs[row], atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.6},
        {"top_p": 0.7},
        {"top_k": 3},
        {"min_p": 0.3},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.8},
        {"logit_bias": {2: 1.0, 4: -math.inf}},
        {"repetition_penalty": 1.5, "presence_penalty": 0.3},
    ],
)
def test_draws_follow_the_distribution_that_the_parameters_ask_for(fields):
    count, size = 20_000, 8
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(4)).expand(count, -1)
    sampler = Sampler(size)
    slots = [sampler.admit(SamplingParams(seed=seed, **fields), [3]) for seed in range(count)]
    counts = np.bincount(sampler.draw(logits.clone(), slots).tokens, minlength=size)
    params = SamplingParams(**fields)
    kept = dict(
        plain_kept(plain_softmax(plain_scores(logits[0].tolist(), params, [3], []), params.temperature), params)
    )
    expected = np.array([kept.get(token, 0.0) for token in range(size)])
    expected *= count / expected.sum()
    assert (counts[expected < 1e-9] == 0).all()
    mass = expected >= 1e-9
    assert float(((counts - expected)[mass] ** 2 / expected[mass]).sum()) < 24.3  # the 0.1% point, 7 degrees of freedom


def test_uniforms_are_uniform_over_seeds_over_steps_and_between_streams():
    over_seeds = uniforms(np.arange(50_000, dtype=np.uint64), np.full(50_000, 3), STREAM_TOKEN)
    over_steps = uniforms(np.full(50_000, 5, np.uint64), np.arange(50_000), STREAM_TOKEN)
    for numbers in (over_seeds, over_steps):
        counts = np.histogram(numbers, 100, (0, 1))[0]
        assert ((counts - 500) ** 2 / 500).sum() < 148.3  # the 0.1% point, 99 degrees of freedom
        # A correlation of independent numbers has a standard deviation of 1 / sqrt(50,000).
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 4 / math.sqrt(50_000)
    streams = [uniforms(np.arange(50_000, dtype=np.uint64), np.zeros(50_000, np.int64), stream) for stream in range(3)]
    assert np.abs(np.corrcoef(streams) - np.eye(3)).max() < 4 / math.sqrt(50_000)


@given(
    masses=st.lists(st.sampled_from([0.0, 1e-30, 1e-9, 0.3, 1.0]), min_size=1, max_size=200).filter(any),
    uniform=st.sampled_from([0.0, 0.5, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True),
)
def test_a_token_of_probability_zero_never_comes(masses, uniform):
    token = int(draw(torch.tensor([masses]), torch.tensor([uniform], dtype=torch.float64)))
    assert masses[token] > 0


def test_equal_tokens_are_kept_in_the_order_of_their_ids():
    probability = torch.full((1, 100), 0.01)
    ones = torch.ones(1)
    for top_k, top_p in ((3, 1.0), (0, 0.025)):
        kept, ids = most_likely(probability, torch.tensor([top_k]), ones * top_p, ones * 0)
        assert ids[kept > 0].tolist() == [0, 1, 2]


def test_the_examples_of_the_guide_run_without_torch():
    guide = (Path(__file__).parents[1] / "docs" / "sampling.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL))
    code += "\nimport sys\nassert 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_choices_have_seeds_of_their_own_and_the_first_is_that_of_the_request():
    params = SamplingParams(seed=11, n=4)
    seeds = [params.seed_of(choice) for choice in range(4)]
    assert seeds[0] == 11
    assert len(set(seeds)) == 4
    assert not set(seeds[1:]) & {SamplingParams(seed=seed).seed_of(1) for seed in range(11)}


def test_what_is_ruled_out_comes_only_when_nothing_else_can():
    params = SamplingParams(logit_bias=dict.fromkeys(range(VOCAB - 1), -math.inf), temperature=1.0)
    sampler = Sampler(VOCAB)
    assert sampler.draw(torch.randn(1, VOCAB), [sampler.admit(params, [1])]).tokens.tolist() == [VOCAB - 1]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1e-38, "top_k": 3},
        {"temperature": 1e-300, "top_p": 0.5},
        {"temperature": 1e30},
        {"repetition_penalty": 0.01, "presence_penalty": -100.0, "logit_bias": {3: 1000.0, 4: -math.inf}},
    ],
)
def test_the_most_extreme_parameters_still_draw_a_token(fields):
    sampler = Sampler(VOCAB)
    slot = sampler.admit(SamplingParams(**fields), [3, 4])
    for _ in range(3):
        drawn = sampler.draw(torch.randn(1, VOCAB) * 1e4, [slot])
        assert 0 <= int(drawn.tokens[0]) < VOCAB
        assert not drawn.ended
        assert float(drawn.logprobs[0]) <= 0


def test_scores_that_are_no_numbers_end_their_own_sequence_alone():
    sampler, healthy = Sampler(VOCAB), Sampler(VOCAB)
    params = [
        SamplingParams(seed=1, top_k=4),
        SamplingParams(top_p=0.9),
        SamplingParams(temperature=0.0),
        SamplingParams(seed=4),
    ]
    logits = spread(4, 0)
    broken = logits.clone()
    broken[1, 5], broken[2, 0] = math.nan, math.inf
    drawn = sampler.draw(broken, [sampler.admit(each, [1]) for each in params])
    expected = healthy.draw(logits, [healthy.admit(each, [1]) for each in params])
    assert drawn.ended == {1: "abort", 2: "abort"}
    assert (drawn.tokens == expected.tokens)[[0, 3]].all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 2.0}, "must be an integer"),
        ({"temperature": -1.0}, "temperature must be a finite number of at least 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"min_p": 1.5}, "min_p must be in"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": float("inf")}, "presence_penalty"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 2**64}, "seed must be in"),
        ({"n": 0}, "n must be at least 1"),
        ({"stop": ("a", "")}, "stop must be strings"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens=9 is above max_tokens=8"),
        ({"top_logprobs": True}, "must be an integer"),
        ({"logit_bias": {1: float("inf")}}, "logit_bias of token 1"),
    ],
)
def test_parameters_outside_their_range_are_refused_in_one_line(fields, message):
    with pytest.raises(RequestError, match=message) as error:
        SamplingParams(**fields)
    assert "\n" not in str(error.value)


def test_ids_outside_the_vocabulary_are_refused():
    for fields in ({"stop_token_ids": (VOCAB,)}, {"logit_bias": {-1: 1.0}}):
        with pytest.raises(RequestError, match="outside the vocabulary of 150"):
            SamplingParams(**fields).check_vocabulary(VOCAB)


def test_stop_tokens_are_those_of_the_model_unless_the_request_says_otherwise():
    assert SamplingParams().stop_ids([1, 2]) == {1, 2}
    assert SamplingParams(ignore_eos=True).stop_ids([1, 2]) == frozenset()
    assert SamplingParams(stop_token_ids=[5], ignore_eos=True).stop_ids([1, 2]) == {5}
    assert SamplingParams(stop="end").stop == ("end",)
