"""An engine in its thread, used by asyncio tasks."""

import asyncio

import pytest
import torch
from test_model import random_model

from glmcore.engine.config import EngineConfig
from glmcore.engine.engine import Engine
from glmcore.engine.sampling import SamplingParams
from glmcore.engine.service import EngineService
from glmcore.errors import RequestError
from glmcore.fp8 import WeightPublisher


def engine(**config: object) -> Engine:
    return Engine(random_model(torch.float32), [1, 2], config=EngineConfig(**config))


def run(scenario, **config: object):
    """The result of `scenario(service)`, an async function."""

    async def body():
        service = EngineService(engine(**config))
        try:
            return await asyncio.wait_for(scenario(service), 60)
        finally:
            await service.close()

    return asyncio.run(body())


ENDLESS = SamplingParams(max_tokens=100, stop_token_ids=())


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_tasks_get_what_a_plain_engine_gives():
    prompts = [[5, 6, 7], [9], [5, 6, 7], list(range(40))]
    params = [SamplingParams(max_tokens=12, seed=seed) for seed in range(4)]

    async def scenario(service):
        return await asyncio.gather(*map(service.generate, prompts, params))

    expected = engine().generate(prompts, params)
    assert [generation for [generation] in run(scenario)] == expected


def test_a_stream_gives_the_same_tokens_one_by_one_and_every_choice_its_own():
    params = SamplingParams(max_tokens=8, n=3, seed=4)

    async def scenario(service):
        streamed = [[], [], []]
        async for delta in service.stream([3, 4], params):
            assert len(delta.token_ids) <= 1
            streamed[delta.index] += delta.token_ids
        return streamed, [generation.token_ids for generation in await service.generate([3, 4], params)]

    streamed, whole = run(scenario)
    assert streamed == whole
    assert len({tuple(tokens) for tokens in whole}) > 1


def test_closing_a_stream_frees_its_memory_at_once():
    async def scenario(service):
        stream = service.stream([3], ENDLESS)
        await anext(stream)
        assert service.stats().running == 1
        await stream.aclose()
        await until(lambda: service.stats().running == 0)
        return service.stats().cache_used

    assert run(scenario) == 0


def test_a_cancelled_task_aborts_its_request():
    async def scenario(service):
        task = asyncio.ensure_future(service.generate([3], ENDLESS))
        await until(lambda: service.stats().running == 1)
        task.cancel()
        await until(lambda: service.stats().running == 0)

    run(scenario)


def test_a_pause_keeps_requests_and_weights_can_change_in_it():
    new = random_model(torch.float32).init_weights(seed=5)

    async def scenario(service):
        task = asyncio.ensure_future(service.generate([3], ENDLESS))
        await until(lambda: service.stats().generated_tokens > 3)
        await service.pause()
        before = service.stats().generated_tokens
        await service.update_weights(7, WeightPublisher(precision="bf16").publish(7, new.state_dict()))
        await asyncio.sleep(0.02)
        assert service.stats().generated_tokens == before
        await service.resume()
        return before, (await task)[0]

    before, generation = run(scenario)
    assert generation.policy_versions == [0] * before + [7] * (100 - before)
    assert generation.policy_version == 7


def test_aborting_all_gives_everybody_what_there_is():
    async def scenario(service):
        tasks = [asyncio.ensure_future(service.generate([token], ENDLESS)) for token in (3, 4)]
        await until(lambda: service.stats().generated_tokens > 6)
        partial = await service.abort_all()
        return partial, [(await task)[0] for task in tasks]

    partial, told = run(scenario)
    assert partial == told
    assert all(0 < len(generation.token_ids) < 100 for generation in told)
    assert {generation.finish_reason for generation in told} == {"abort"}


def test_a_request_that_cannot_be_served_is_refused_to_its_task_alone():
    async def scenario(service):
        good = asyncio.ensure_future(service.generate([3], SamplingParams(max_tokens=4)))
        with pytest.raises(RequestError, match="outside the vocabulary"):
            await service.generate([999], SamplingParams())
        return await good

    assert len(run(scenario)) == 1


def test_a_closed_service_says_so():
    async def scenario():
        service = EngineService(engine())
        await service.close()
        with pytest.raises(RequestError, match="closed"):
            await service.generate([3], SamplingParams())

    asyncio.run(scenario())
