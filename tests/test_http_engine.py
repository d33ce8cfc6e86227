"""HTTP engines against a small server that speaks vLLM's or SGLang's protocol."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from model_server import TOKEN_S, Model
from scripted_server import scripted_server
from test_model import random_model

from glmcore.engine.sampling import SamplingParams
from glmcore.errors import RequestError, ServerError, SyncError
from glmcore.fp8.bucket import weights_checksum
from glmcore.fp8.publisher import WeightPublisher
from glmcore.fp8.weight_directory import WeightDirectory
from glmcore.model.glm import Glm
from glmcore.model.weights import hf_views
from glmcore.rl.http_engine import HttpEngine
from glmcore.rl.http_engine_dialects import Call, Dialect, SglangDialect, VllmDialect
from glmcore.rl.http_engine_link import HttpEngineConfig
from glmcore.rl.http_engine_process import ServerProcess

QUICK = HttpEngineConfig(
    request_s=20, load_s=5, start_s=20, drain_s=1, health_every_s=0.05, health_s=2, health_misses=2, max_restarts=2
)


@pytest.fixture(params=["vllm", "sglang"])
def model(request):
    return Model(request.param)


def dialect(model: Model) -> Dialect:
    return VllmDialect() if model.kind == "vllm" else SglangDialect()


@pytest.fixture
def policy() -> Glm:
    return random_model(torch.float32)


def weights(directory: Path, policy: Glm) -> WeightDirectory:
    return WeightDirectory(directory, policy.config.to_hf())


def published(policy: Glm, version: int):
    return WeightPublisher(bucket_bytes=1 << 20, precision="bf16").publish(version, policy.state_dict())


def drive(
    model: Model, directory: WeightDirectory, work: Callable[[HttpEngine], Awaitable[Any]], **options: Any
) -> Any:
    async def run(url: str) -> Any:
        engine = HttpEngine(url, dialect(model), directory, [9999], **{"config": QUICK, **options})
        await engine.start()
        try:
            return await asyncio.wait_for(work(engine), 60)
        finally:
            await engine.close()

    with scripted_server(model) as url:
        return asyncio.run(run(url))


def test_tokens_come_with_log_probabilities_and_versions(model, policy, tmp_path):
    async def work(engine: HttpEngine) -> Any:
        several = await engine.generate([1, 2, 3], SamplingParams(max_tokens=4, n=3, seed=5))
        return several, await engine.generate([1, 2, 3], SamplingParams(max_tokens=9, stop_token_ids=(5,)))

    several, [stopped] = drive(model, weights(tmp_path, policy), work)
    assert [generation.token_ids for generation in several] == [[3, 4, 5, 6]] * 3
    assert several[0].logprobs == [-0.03, -0.04, -0.05, -0.06]
    assert several[0].policy_versions == [0] * 4
    assert {generation.finish_reason for generation in several} == {"length"}
    assert (stopped.token_ids, stopped.finish_reason, stopped.stop) == ([3, 4, 5], "stop", 5)
    assert len(set(model.seeds[:3])) == 3


def test_weights_are_replaced_between_two_tokens_and_every_token_has_its_version(model, policy, tmp_path):
    directory = weights(tmp_path, policy)

    async def work(engine: HttpEngine) -> Any:
        running = [
            asyncio.create_task(engine.generate([1] * size, SamplingParams(max_tokens=40, seed=size)))
            for size in (1, 2, 3)
        ]
        checksums = []
        for version in (1, 2):
            await asyncio.sleep(8 * TOKEN_S)
            checksums.append(await engine.update_weights(version, published(policy, version)))
        return [generation for [generation] in await asyncio.gather(*running)], checksums, engine.policy_version

    generations, checksums, version = drive(model, directory, work)
    assert version == 2
    held = {name: view.to(torch.bfloat16) for name, view in hf_views(policy.state_dict()).items()}
    biases = {name: view for name, view in hf_views(policy.state_dict()).items() if name.endswith("correction_bias")}
    assert checksums == [weights_checksum(held | biases)] * 2
    assert model.loaded == [str(directory.path(version).absolute()) for version in (1, 2)]
    for size, generation in zip((1, 2, 3), generations, strict=True):
        assert generation.finish_reason == "length"
        assert set(generation.policy_versions) == {0, 1, 2}
        # Whoever drew a token wrote its version and its place into it.
        expected = [100 * version + size + place for place, version in enumerate(generation.policy_versions)]
        assert generation.token_ids == expected
        assert generation.policy_versions == sorted(generation.policy_versions)
    assert any(prompt[-1] >= 100 for prompt in model.prompts), "what was drawn is behind the prompt of the next part"
    assert len(set(model.seeds)) == len(model.seeds), "no part draws the numbers of another"


def test_a_paused_engine_draws_nothing_and_forgets_nothing(model, policy, tmp_path):
    async def work(engine: HttpEngine) -> Any:
        early = asyncio.create_task(engine.generate([1], SamplingParams(max_tokens=30)))
        await asyncio.sleep(5 * TOKEN_S)
        await engine.pause()
        late = asyncio.create_task(engine.generate([1, 2], SamplingParams(max_tokens=3)))
        seen = len(model.prompts)
        await asyncio.sleep(10 * TOKEN_S)
        assert not early.done()
        assert len(model.prompts) == seen
        await engine.update_weights(1, published(policy, 1))
        assert model.paused
        await engine.resume()
        return (await early)[0], (await late)[0]

    early, late = drive(model, weights(tmp_path, policy), work)
    assert len(early.token_ids) == 30
    assert set(early.policy_versions) == {0, 1}
    assert late.policy_versions == [1, 1, 1]


def test_abort_gives_what_there_is_to_the_caller_and_to_those_who_wait(model, policy, tmp_path):
    async def work(engine: HttpEngine) -> Any:
        running = [asyncio.create_task(engine.generate([1] * size, SamplingParams(max_tokens=500))) for size in (1, 2)]
        await asyncio.sleep(8 * TOKEN_S)
        ended = await engine.abort_all()
        found = [generation for [generation] in await asyncio.gather(*running)]
        await engine.pause()
        waiting = asyncio.create_task(engine.generate([1], SamplingParams(max_tokens=5)))
        await asyncio.sleep(0.01)
        [never_sent] = await engine.abort_all()
        assert (await waiting) == [never_sent]
        await engine.resume()
        return ended, found, never_sent, await engine.generate([1], SamplingParams(max_tokens=2))

    ended, found, never_sent, [after] = drive(model, weights(tmp_path, policy), work)
    assert ended == found
    assert {generation.finish_reason for generation in found} == {"abort"}
    assert all(0 < len(generation.token_ids) < 500 for generation in found)
    assert (never_sent.token_ids, never_sent.finish_reason) == ([], "abort")
    assert after.token_ids == [1, 2]


def test_a_server_that_somebody_started_anew_gets_its_weights_back_before_a_token_counts(model, policy, tmp_path):
    async def work(engine: HttpEngine) -> Any:
        await engine.update_weights(3, published(policy, 3))
        model.version = None  # it has those that it begins with
        return await engine.generate([1], SamplingParams(max_tokens=3))

    [generation] = drive(model, weights(tmp_path, policy), work, config=HttpEngineConfig(health_every_s=60))
    assert generation.token_ids == [301, 302, 303]
    assert generation.policy_versions == [3, 3, 3]
    assert len(model.loaded) == 2


def test_the_newest_weights_are_loaded_at_the_start(model, policy, tmp_path):
    directory = weights(tmp_path, policy)
    directory.update_weights(7, published(policy, 7))

    async def work(engine: HttpEngine) -> Any:
        return engine.policy_version, await engine.generate([1], SamplingParams(max_tokens=1))

    version, [generation] = drive(model, directory, work)
    assert (version, generation.token_ids) == (7, [701])


@pytest.mark.parametrize("fault", [(0, None), (500, "oh"), (200, {"choices": []}), (200, "text")])
def test_one_failure_of_a_server_that_is_well_is_tried_again(model, policy, tmp_path, fault):
    model.faults = [fault]
    [generation] = drive(
        model, weights(tmp_path, policy), lambda engine: engine.generate([1], SamplingParams(max_tokens=2))
    )
    assert generation.token_ids == [1, 2]


def test_a_server_that_fails_again_and_again_is_an_error(model, policy, tmp_path):
    model.faults = [(500, "out of order")] * 10
    with pytest.raises(ServerError, match="answered 500: out of order"):
        drive(model, weights(tmp_path, policy), lambda engine: engine.generate([1], SamplingParams(max_tokens=2)))


def test_what_a_server_refuses_is_not_tried_again(model, policy, tmp_path):
    model.faults = [(400, {"error": "too long"})]
    with pytest.raises(RequestError, match=r"answered 400: .*too long"):
        drive(model, weights(tmp_path, policy), lambda engine: engine.generate([1], SamplingParams(max_tokens=2)))
    assert model.faults == []


def test_a_server_that_does_not_load_weights_stops_the_engine_until_it_does(model, policy, tmp_path):
    async def work(engine: HttpEngine) -> Any:
        good = model.__class__.__call__

        def bad(self: Model, method: str, path: str, body: Any) -> tuple[int, Any]:
            if path in ("/collective_rpc", "/update_weights_from_disk"):
                return 400, {"error": "no such file"}
            return good(self, method, path, body)

        Model.__call__ = bad
        try:
            with pytest.raises(SyncError, match=r"does not load .*no such file"):
                await engine.update_weights(1, published(policy, 1))
        finally:
            Model.__call__ = good
        with pytest.raises(ServerError, match="serves no more: version 1 could not be loaded"):
            await engine.generate([1], SamplingParams(max_tokens=2))
        await engine.update_weights(2, published(policy, 2))
        return await engine.generate([1], SamplingParams(max_tokens=2))

    [generation] = drive(model, weights(tmp_path, policy), work)
    assert generation.policy_versions == [2, 2]


def test_wishes_that_would_mean_something_else_are_refused(policy, tmp_path):
    vllm, processed = VllmDialect(), VllmDialect("processed_logprobs")
    model = Model("vllm")

    async def work(engine: HttpEngine) -> None:
        for kind, params, words in (
            (vllm, SamplingParams(temperature=0.7), "--logprobs-mode processed_logprobs"),
            (processed, SamplingParams(top_p=0.9), "--logprobs-mode raw_logprobs"),
        ):
            engine.dialect = kind
            with pytest.raises(RequestError, match=words):
                await engine.generate([1], params)
        engine.dialect = vllm
        with pytest.raises(RequestError, match="empty"):
            await engine.generate([], SamplingParams())

    drive(model, weights(tmp_path, policy), work)
    with pytest.raises(RequestError, match="gives no log-probabilities"):
        VllmDialect("raw_logits")


def test_a_server_of_another_kind_is_told_from_a_dead_one(policy, tmp_path):
    async def run(url: str) -> None:
        engine = HttpEngine(url, VllmDialect(), weights(tmp_path, policy), [1], config=QUICK)
        try:
            await engine.start()
        finally:
            await engine.close()

    with (
        scripted_server(lambda method, path, body: (200 if path == "/health" else 404, "")) as url,
        pytest.raises(ServerError, match="has to be vLLM with --enable-scale-out"),
    ):
        asyncio.run(run(url))


SERVER = """
import sys
sys.path[:0] = {paths!r}
from model_server import Model
from scripted_server import new_server
new_server({port}, Model({kind!r})).serve_forever()
"""


@contextmanager
def own_process(model: Model, tmp_path: Path):
    """A server in a process of its own, with its URL."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "server.py"
    script.write_text(SERVER.format(paths=[str(Path(__file__).parent)], port=port, kind=model.kind))
    env = {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = ServerProcess([sys.executable, str(script)], env, tmp_path / "server.log")
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.stop()


def test_a_server_that_is_killed_comes_back_with_its_weights_and_requests_go_on(policy, tmp_path):
    model = Model("vllm")

    async def run(process: ServerProcess, url: str) -> Any:
        engine = HttpEngine(
            url, dialect(model), weights(tmp_path / "weights", policy), [9999], config=QUICK, process=process
        )
        await engine.start()
        try:
            await engine.update_weights(4, published(policy, 4))
            running = asyncio.create_task(engine.generate([1], SamplingParams(max_tokens=60)))
            await asyncio.sleep(10 * TOKEN_S)
            first = process._process
            assert first is not None
            os.kill(first.pid, signal.SIGKILL)
            [generation] = await asyncio.wait_for(running, 60)
            os.kill(process._process.pid, signal.SIGSTOP)  # hangs: found by the watch
            hung = asyncio.create_task(engine.generate([1], SamplingParams(max_tokens=2)))
            await asyncio.wait_for(hung, 60)
            return generation, engine.num_restarts, first
        finally:
            await engine.close()

    with own_process(model, tmp_path) as (process, url):
        generation, restarts, first = asyncio.run(run(process, url))
    assert generation.token_ids == [400 + place for place in range(1, 61)]
    assert set(generation.policy_versions) == {4}
    assert restarts == 2
    assert first.poll() is not None


def test_a_server_that_keeps_dying_is_given_up_with_its_log_named(policy, tmp_path):
    process = ServerProcess([sys.executable, "-c", "raise SystemExit('no')"], {}, tmp_path / "server.log")

    async def run() -> None:
        engine = HttpEngine(
            "http://127.0.0.1:9", VllmDialect(), weights(tmp_path / "w", policy), [1], config=QUICK, process=process
        )
        try:
            await engine.start()
        finally:
            await engine.close()

    with pytest.raises(ServerError, match=r"has died 3 times: see .*server.log"):
        asyncio.run(run())
    assert "no" in (tmp_path / "server.log").read_text()
    with pytest.raises(ServerError, match="cannot start"):
        ServerProcess(["/nonexistent"], {}, tmp_path / "server.log").start()


def test_requests_are_what_the_servers_document():
    params = SamplingParams(max_tokens=5, temperature=0.5, top_p=0.9, stop_token_ids=(7,))
    from glmcore.rl.http_engine_dialects import Sampled

    sampled = Sampled.of(params, [1]).rest(2, seed=11)
    call = SglangDialect().generate([1, 2], sampled, "id", 0)
    assert call == Call(
        "POST",
        "/generate",
        {
            "rid": "id",
            "input_ids": [1, 2],
            "return_logprob": True,
            "sampling_params": {
                "max_new_tokens": 3,
                "temperature": 0.5,
                "top_p": 0.9,
                "top_k": -1,
                "min_p": 0.0,
                "sampling_seed": 11,
                "stop_token_ids": [7],
                "min_new_tokens": 0,
                "ignore_eos": True,
            },
        },
    )
    assert json.dumps(VllmDialect().generate([1], sampled, "id", 3).body)
    assert VllmDialect().generate([1], sampled, "id", 3).body["priority"] == 3
