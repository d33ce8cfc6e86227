import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import packed, random_model

from glmcore.engine.config import EngineConfig
from glmcore.engine.engine import Engine
from glmcore.engine.request import Delta, Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.errors import RequestError
from glmcore.fp8 import WeightPublisher

PROMPT = st.lists(st.integers(0, TINY["vocab_size"] - 1), min_size=1, max_size=40)


def engine(max_sequences: int = 256) -> Engine:
    return Engine(random_model(torch.float32), [1, 2], config=EngineConfig(max_sequences=max_sequences))


@settings(deadline=None, max_examples=15)
@given(
    prompts=st.lists(PROMPT, min_size=1, max_size=5),
    wave=st.integers(1, 6),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_a_batch_gives_the_tokens_of_each_request_alone(prompts, wave, temperature):
    params = [SamplingParams(max_tokens=12, temperature=temperature, seed=i) for i in range(len(prompts))]
    together = engine(wave).generate(prompts, params)
    for prompt, param, generation in zip(prompts, params, together, strict=True):
        [alone] = engine().generate([prompt], [param])
        assert generation.token_ids == alone.token_ids
        # Sums over 32 to 48 float32 terms in another order: some 1e-6 in a log-probability.
        np.testing.assert_allclose(generation.logprobs, alone.logprobs, atol=1e-4)


def test_generation_is_what_repeated_full_passes_give():
    generator = engine()
    [generation] = generator.generate([[5, 6, 7]], [SamplingParams(max_tokens=20, temperature=0.0)])
    ids = [5, 6, 7]
    for token, logprob in zip(generation.token_ids, generation.logprobs, strict=True):
        _, positions, layout = packed([len(ids)])
        with torch.no_grad():
            hidden = generator.model(torch.tensor(ids), positions, layout).hidden[-1]
            expected = generator.model.logits(hidden).log_softmax(-1)
        assert int(expected.argmax()) == token
        assert logprob == pytest.approx(float(expected[token]), abs=1e-4)
        ids.append(token)
    assert generation.finish_reason == ("stop" if generation.token_ids[-1] in (1, 2) else "length")
    assert not {1, 2} & set(generation.token_ids[:-1])


def test_a_request_told_whole_is_what_its_deltas_would_have_been():
    params = SamplingParams(max_tokens=9, temperature=1.0, seed=5, n=3, top_logprobs=2)
    generator = engine()
    results = []
    for whole in (False, True):
        number = generator.add([5, 6], params, whole=whole)
        told: list[list[Delta]] = [[], [], []]
        while generator.has_work:
            for request, delta in generator.step():
                assert request == number
                told[delta.index].append(delta)
        assert all((len(deltas) == 1) == whole for deltas in told if sum(len(d.token_ids) for d in deltas) > 1)
        results.append([Generation() for _ in told])
        for generation, deltas in zip(results[-1], told, strict=True):
            for delta in deltas:
                generation.add(delta)
            generation.cached_tokens = 0  # the second request finds what the first has left
    assert results[0] == results[1]


def test_an_aborted_request_told_whole_tells_what_it_has():
    generator = engine()
    number = generator.add([5, 6], SamplingParams(max_tokens=50, ignore_eos=True), whole=True)
    assert [generator.step(), generator.step()] == [[], []]
    generator.abort(number)
    [(_, delta)] = generator.step()
    assert (len(delta.token_ids), delta.finish_reason) == (2, "abort")


def test_the_examples_of_the_guide_hold():
    guide = (Path(__file__).parents[1] / "docs" / "engine.md").read_text()
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)), "engine.md", "exec"), {})


def test_new_weights_change_the_answers_and_mark_them():
    generator = engine()
    params = [SamplingParams(max_tokens=16, seed=3)]
    before = generator.generate([[5]], params)[0]
    other = random_model(torch.float32)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-1.5)
    generator.update_weights(7, WeightPublisher(precision="bf16").publish(7, other.state_dict()))
    after = generator.generate([[5]], params)[0]
    assert (before.policy_version, after.policy_version) == (0, 7)
    assert before.token_ids != after.token_ids


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "is empty"),
        ([64], "outside the vocabulary"),
        ([-1], "outside the vocabulary"),
        ([0] * 128, "no room"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(prompt, message):
    with pytest.raises(RequestError, match=message):
        engine().generate([[3], prompt], [SamplingParams()] * 2)
