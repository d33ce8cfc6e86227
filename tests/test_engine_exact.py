"""Schedules change nothing: whatever the engine does beside a request, its tokens and log-probabilities are the same bits."""

import json
import os
import struct

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import random_model

from glmcore.engine.config import EngineConfig
from glmcore.engine.engine import Engine
from glmcore.engine.memory import check_fits
from glmcore.engine.request import Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.errors import CheckpointError, QueueFullError, RequestError, SyncError
from glmcore.fp8 import WeightPublisher
from glmcore.model.decode_ops import DecodeModel
from glmcore.model.paged import BLOCK, PagedCache, PagedLayout

PROMPT = st.lists(st.integers(0, 2), min_size=1, max_size=50)  # few tokens, so that prompts begin alike
REQUEST = st.tuples(PROMPT, st.integers(1, 20), st.sampled_from([0.0, 1.0]), st.integers(0, 3), st.integers(0, 4))
MODEL = random_model(torch.float32)


def engine(**config: object) -> Engine:
    return Engine(MODEL, [1, 2], config=EngineConfig(**config))


def drive(generator: Engine, requests, actions=lambda step: None) -> list[Generation]:
    """Add each request at its step, and collect."""
    results, numbers, step = [Generation() for _ in requests], {}, 0
    while len(numbers) < len(requests) or generator.has_work:
        for index, (prompt, count, temperature, priority, start) in enumerate(requests):
            if start == step:
                params = SamplingParams(max_tokens=count, temperature=temperature, seed=index)
                numbers[generator.add(prompt, params, priority=priority)] = index
        actions(step)
        for number, delta in generator.step():
            results[numbers[number]].add(delta)
        step += 1
    return results


@settings(max_examples=60)
@given(
    requests=st.lists(REQUEST, min_size=1, max_size=7),
    max_sequences=st.integers(1, 8),
    max_step_tokens=st.integers(1, 80),
    blocks=st.integers(5, 30),
    reuse=st.booleans(),
)
def test_batches_chunks_prefixes_and_preemption_change_no_bit(requests, max_sequences, max_step_tokens, blocks, reuse):
    generator = engine(
        max_sequences=max_sequences, max_step_tokens=max_step_tokens, cache_tokens=blocks * BLOCK, reuse_prefixes=reuse
    )
    together = drive(generator, requests)
    for index, (prompt, count, temperature, _, _) in enumerate(requests):
        params = SamplingParams(max_tokens=count, temperature=temperature, seed=index)
        [alone] = engine(reuse_prefixes=False).generate([prompt], [params])
        assert together[index].token_ids == alone.token_ids
        assert together[index].logprobs == alone.logprobs
    stats = generator.stats()
    assert (stats.running, stats.waiting, stats.cache_used) == (0, 0, 0)


@settings(max_examples=20)
@given(prompt=PROMPT, count=st.integers(1, 30))
def test_generation_is_what_full_passes_of_the_model_give(prompt, count):
    [generation] = engine().generate([prompt], [SamplingParams(max_tokens=count, temperature=0.0)])
    ids = torch.tensor(prompt + generation.token_ids)
    layout = PagedLayout(np.array([0, len(ids)], np.int32), np.array([len(ids)], np.int32), np.arange(8)[None])
    caches = [PagedCache.empty(MODEL.config, 8, MODEL.lm_head.weight) for _ in MODEL.decoder_layers]
    with torch.no_grad():
        logits = MODEL.logits(MODEL(ids, torch.arange(len(ids)), layout, caches=caches).hidden)[len(prompt) - 1 : -1]
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, ids[len(prompt) :, None]).squeeze(1)
    # Sums of 16 to 48 float32 products in another order, through four layers: some 1e-6; the margin is for ties.
    np.testing.assert_allclose(generation.logprobs, chosen, atol=1e-4)
    assert bool((logprobs.amax(-1) - chosen < 1e-4).all())


@settings(max_examples=25)
@given(
    counts=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30)), min_size=1, max_size=4),
    fields=st.sampled_from(
        [{}, {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}, {"hidden_size": 40, "use_qk_norm": False}]
    ),
)
def test_the_core_agrees_with_the_modules_and_reads_nothing_that_nobody_wrote(counts, fields):
    model = random_model(torch.float32, **fields)
    core, rng = DecodeModel(model), np.random.default_rng(0)
    tables = rng.permutation(4 * len(counts)).reshape(-1, 4).astype(np.int32)
    memories = []
    for _ in range(2):
        caches = [PagedCache.empty(model.config, tables.size, model.lm_head.weight) for _ in model.decoder_layers]
        for cache in caches:
            cache.keys.fill_(float("nan"))
            cache.values.fill_(float("nan"))
        memories.append(caches)
    for new, total in (([a + b for a, b in counts], None), ([1] * len(counts), 1)):
        lengths = np.array([a + b + (total or 0) for a, b in counts], np.int32)
        layout = PagedLayout(np.concatenate(([0], np.cumsum(new))).astype(np.int32), lengths, tables)
        ids = rng.integers(0, TINY["vocab_size"], sum(new)).astype(np.int32)
        rows = np.arange(len(ids), dtype=np.int32)
        with torch.no_grad():
            tokens, positions = torch.from_numpy(ids).long(), torch.from_numpy(layout.positions)
            expected = model(tokens, positions, layout, caches=memories[0]).hidden
            got = core.hidden(ids, layout, rows, memories[1])
            # As above; hidden states are of size 1.
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
            torch.testing.assert_close(core.logits(got), model.logits(got), rtol=0, atol=1e-4)


def test_samples_of_a_group_read_their_prompt_once_and_later_turns_read_what_is_new():
    generator, prompt = engine(), list(range(40))
    params = [SamplingParams(max_tokens=20, seed=seed, stop_token_ids=()) for seed in range(8)]
    first = generator.generate([prompt] * 8, params)
    assert generator.stats().prompt_tokens - generator.stats().cached_tokens == 40
    turn = [*prompt, *first[0].token_ids, 5, 6]
    [second] = generator.generate([turn], params[:1])
    assert second.cached_tokens == (len(prompt) + 19) // BLOCK * BLOCK  # the last token was never computed


def test_running_sequences_go_on_under_new_weights_as_if_they_had_been_read_by_them():
    model, other = random_model(torch.float32), random_model(torch.float32).init_weights(seed=9)
    generator = Engine(model, [], config=EngineConfig())
    number = generator.add([3] * 20, SamplingParams(max_tokens=40, temperature=0.0))
    result = Generation()
    for step in range(40):
        if step == 25:
            generator.update_weights(4, WeightPublisher(precision="bf16").publish(4, other.state_dict()))
        for got, delta in generator.step():
            assert got == number
            result.add(delta)
    assert result.policy_versions == [0] * 25 + [4] * 15
    fresh = Engine(model, [], config=EngineConfig())
    text = [3] * 20 + result.token_ids[:25]
    [rest] = fresh.generate([text], [SamplingParams(max_tokens=15, temperature=0.0)])
    assert (result.token_ids[25:], result.logprobs[25:]) == (rest.token_ids, rest.logprobs)
    # Nothing of the old weights is used for a prompt that begins alike.
    [again] = generator.generate([[3] * 20], [SamplingParams(max_tokens=5)])
    assert again.policy_version == 4


def test_sleep_gives_memory_back_and_requests_survive_it():
    requests = [([3] * 20, 30, 1.0, 0, 0)]
    expected = drive(engine(), requests)
    generator = engine()

    def nap(step: int) -> None:
        if step == 7:
            generator.sleep()
            with pytest.raises(SyncError, match="sleeps"):
                generator.step()
            generator.wake()

    assert [g.token_ids for g in drive(generator, requests, nap)] == [g.token_ids for g in expected]


def test_abort_frees_at_once_wherever_the_request_is():
    generator = engine(max_sequences=2, max_step_tokens=8)
    params = SamplingParams(max_tokens=50, stop_token_ids=())
    numbers = [generator.add([index] * 12, params) for index in range(3)]
    for _ in range(4):
        generator.step()
    stats = generator.stats()
    assert (stats.running, stats.waiting) == (2, 1)
    for number in numbers:
        generator.abort(number)
    stats = generator.stats()
    assert (stats.running, stats.waiting, stats.cache_used) == (0, 0, 0)
    assert {(number, delta.finish_reason) for number, delta in generator.step()} == {(n, "abort") for n in numbers}
    assert not generator.has_work


def test_lower_priority_numbers_go_first():
    generator = engine(max_sequences=1)
    params = SamplingParams(max_tokens=2, stop_token_ids=())
    late, soon = generator.add([3], params, priority=5), generator.add([4], params, priority=1)
    order = [number for _ in range(4) for number, _ in generator.step()]
    assert order == [soon, soon, late, late]


def test_what_can_never_fit_and_what_has_to_wait_too_long_is_refused_with_numbers():
    generator = engine(cache_tokens=64, max_waiting=1, max_sequences=1)
    with pytest.raises(RequestError, match="60 tokens of prompt and up to 10 of answer do not fit the cache of 64"):
        generator.add([3] * 60, SamplingParams(max_tokens=10))
    generator.add([3], SamplingParams(max_tokens=10))
    with pytest.raises(QueueFullError, match="1 sequences wait, 1 may"):
        generator.add([3], SamplingParams(max_tokens=10))


def test_a_checkpoint_larger_than_the_memory_is_refused_by_its_headers(tmp_path):
    random_model(torch.float32).save_pretrained(tmp_path / "m")
    check_fits(tmp_path / "m", torch.float32)
    # A file that is larger than any memory and takes no room on the disk.
    [file] = (tmp_path / "m").glob("*.safetensors")
    rows = 2**36
    header = json.dumps({"huge": {"dtype": "BF16", "shape": [rows, 64], "data_offsets": [0, rows * 128]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(file, 8 + len(header) + rows * 128)
    with pytest.raises(CheckpointError, match=r"16384.0 GiB as torch.float32, [0-9.]+ GiB of memory are free"):
        check_fits(tmp_path / "m", torch.float32)
