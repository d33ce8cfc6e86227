"""An engine in the event loop of those who ask it."""

import asyncio

import pytest
import torch
from test_model import random_model

from glmcore.engine.engine import Engine
from glmcore.engine.sampling import SamplingParams
from glmcore.errors import SyncError
from glmcore.fp8 import WeightPublisher
from glmcore.rl.loop_engine import LoopEngine

ENDLESS = SamplingParams(max_tokens=100, stop_token_ids=())


def engine() -> Engine:
    return Engine(random_model(torch.float32), [1, 2])


def run(scenario):
    """The result of `scenario(loop_engine)`, an async function."""
    return asyncio.run(asyncio.wait_for(scenario(LoopEngine(engine())), 60))


def test_tasks_that_ask_together_get_what_a_plain_engine_gives_and_every_choice_its_own():
    prompts = [[5, 6, 7], [9], [5, 6, 7], list(range(40))]
    params = [SamplingParams(max_tokens=12, seed=seed) for seed in range(4)]

    async def scenario(served):
        several = await served.generate([3, 4], SamplingParams(max_tokens=8, n=3, seed=4))
        return several, await asyncio.gather(*map(served.generate, prompts, params))

    several, found = run(scenario)
    assert [generation for [generation] in found] == engine().generate(prompts, params)
    assert len({tuple(generation.token_ids) for generation in several}) > 1


def test_a_cancelled_task_frees_its_place_and_the_others_go_on():
    async def scenario(served):
        work = [asyncio.ensure_future(served.generate([3], ENDLESS)) for _ in range(2)]
        while not served.engine.stats().running:
            await asyncio.sleep(0)
        work[0].cancel()
        await asyncio.wait(work[:1])
        assert len(served.engine.unfinished) == 1
        return len((await work[1])[0].token_ids)

    assert run(scenario) == 100


def test_weights_come_between_two_steps_and_every_token_tells_its_version():
    async def scenario(served):
        work = asyncio.ensure_future(served.generate([3], ENDLESS))
        while served.engine.stats().generated_tokens < 10:
            await asyncio.sleep(0)
        state = served.engine.model.state_dict()
        publication = WeightPublisher(bucket_bytes=1 << 20).publish(3, state)
        assert await served.update_weights(3, publication) == publication.checksum
        assert served.policy_version == 3
        [generation] = await work
        return generation.policy_versions

    versions = run(scenario)
    assert versions == sorted(versions)
    assert set(versions) == {0, 3}


def test_a_pause_keeps_requests_and_abort_all_gives_what_they_have():
    async def scenario(served):
        work = asyncio.ensure_future(served.generate([3], ENDLESS))
        while served.engine.stats().generated_tokens < 5:
            await asyncio.sleep(0)
        await served.pause()
        drawn = served.engine.stats().generated_tokens
        await asyncio.sleep(0.01)
        assert served.engine.stats().generated_tokens == drawn
        await served.resume()
        while served.engine.stats().generated_tokens <= drawn:
            await asyncio.sleep(0)
        partial = await served.abort_all()
        assert await work == partial
        return partial

    [generation] = run(scenario)
    assert generation.finish_reason == "abort"
    assert 5 < len(generation.token_ids) < 100


def test_a_failure_of_the_engine_reaches_everybody_who_waits():
    async def scenario(served):
        work = [asyncio.ensure_future(served.generate([3], ENDLESS)) for _ in range(2)]
        while not served.engine.stats().running:
            await asyncio.sleep(0)
        served.engine.start_update(1)  # and never ended: the weights are a mixture
        found = await asyncio.gather(*work, return_exceptions=True)
        with pytest.raises(SyncError):
            await served.generate([3], ENDLESS)
        return [type(error).__name__ for error in found]

    assert run(scenario) == ["SyncError"] * 2
