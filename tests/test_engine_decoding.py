"""What a request asks of decoding, through the engine's steps."""

import asyncio
import json

import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from test_constrain import TEXT

import glmcore
from glmcore.chat import parse_reply
from glmcore.engine.config import EngineConfig
from glmcore.engine.constrain import json_schema, tool_calls
from glmcore.engine.engine import Engine
from glmcore.engine.request import Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.engine.service import EngineService
from glmcore.errors import RequestError
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm

LIST = json_schema(
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 1, "maxItems": 4}
)


@pytest.fixture(scope="module")
def tokenizer():
    return glmcore.train_tokenizer([TEXT * 4] * 4, vocab_size=330, progress=False)


@pytest.fixture(scope="module")
def model():
    config = GlmConfig(**{**TINY, "vocab_size": 352, "num_nextn_predict_layers": 1, "eos_token_id": [301]})
    with torch.device("meta"):
        empty = Glm(config)
    return empty.to_empty(device="cpu").init_weights(3)


def new_engine(model, tokenizer, **config) -> Engine:
    return Engine(model, [tokenizer.token_to_id("<|user|>")], tokenizer=tokenizer, config=EngineConfig(**config))


def run(engine: Engine, requests) -> list[list[Generation]]:
    """All requests at once: the generations of each of their choices."""
    ids = [engine.add(prompt, params) for prompt, params in requests]
    results = {
        number: [Generation() for _ in range(params.n)] for number, (_, params) in zip(ids, requests, strict=True)
    }
    while engine.has_work:
        for number, delta in engine.step():
            results[number][delta.index].add(delta)
    return [results[number] for number in ids]


@settings(max_examples=15)
@given(
    stop=st.lists(st.sampled_from(["a", "e", '"', " w", "e a", "\n", "é"]), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    min_tokens=st.sampled_from([0, 8]),
)
def test_a_stop_string_ends_the_text_before_it(model, tokenizer, stop, seed, min_tokens):
    engine = new_engine(model, tokenizer)
    params = SamplingParams(max_tokens=24, seed=seed, stop=tuple(stop), min_tokens=min_tokens)
    [[result]] = run(engine, [([5, 6], params)])
    assert len(result.token_ids) >= min_tokens or result.finish_reason == "length"
    if isinstance(result.stop, str):
        assert result.finish_reason == "stop"
        whole = tokenizer.decode([t for t in result.token_ids if t < tokenizer.vocab_size], skip_special_tokens=True)
        assert whole.startswith(result.text + result.stop)
    elif min_tokens == 0:
        assert not any(each in result.text for each in stop)


def test_constrained_and_free_requests_share_a_batch(model, tokenizer):
    tools = [
        {"name": "f", "parameters": {"type": "object", "properties": {"k": {"type": "boolean"}}, "required": ["k"]}}
    ]
    calls = tool_calls(tools, "required", parallel=False)
    requests = [
        ([5, 6, 7], SamplingParams(max_tokens=60, seed=1, constraint=LIST, n=3)),
        ([5, 6, 7], SamplingParams(max_tokens=20, seed=2)),
        ([9], SamplingParams(max_tokens=60, seed=3, constraint=calls, top_logprobs=2)),
    ]
    together = run(new_engine(model, tokenizer, max_step_tokens=4), requests)
    for reply in together[0]:
        assert reply.finish_reason == "stop"
        assert all(0 <= number <= 99 for number in json.loads(reply.text))
    [call] = parse_reply(together[2][0].text, tools=tools).tool_calls
    assert (call.name, type(call.arguments["k"])) == ("f", bool)
    assert all(len(top) == 2 for top in together[2][0].top_logprobs)
    for request, results in zip(requests, together, strict=True):
        [alone] = run(new_engine(model, tokenizer), [request])
        assert [each.token_ids for each in alone] == [each.token_ids for each in results]


def test_a_service_compiles_constraints_and_refuses_those_it_cannot_enforce(model, tokenizer):
    async def talk() -> None:
        service = EngineService(new_engine(model, tokenizer))
        [reply] = await service.generate([5], SamplingParams(constraint=LIST))
        assert isinstance(json.loads(reply.text), list)
        with pytest.raises(RequestError, match="Invalid type"):
            await service.generate([5], SamplingParams(constraint=json_schema({"type": "foo"})))
        await service.close()

    asyncio.run(talk())


def test_penalties_survive_a_sequence_losing_its_place_in_the_cache(model, tokenizer):
    requests = [
        ([5, 6, number], SamplingParams(max_tokens=40, seed=number, frequency_penalty=1.5, ignore_eos=True))
        for number in range(4)
    ]
    crowded = new_engine(model, tokenizer, cache_tokens=96)
    roomy = run(new_engine(model, tokenizer), requests)
    assert [[each.token_ids for each in results] for results in run(crowded, requests)] == [
        [each.token_ids for each in results] for results in roomy
    ]
    assert crowded.stats().preemptions > 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"stop": "x"}, "need an engine with a tokenizer"),
        ({"constraint": LIST}, "need an engine with a tokenizer"),
        ({"logit_bias": {352: 1.0}}, "outside the vocabulary of 352"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_when_it_is_asked_for(model, params, message):
    with pytest.raises(RequestError, match=message):
        Engine(model, [1]).add([5], SamplingParams(**params))
