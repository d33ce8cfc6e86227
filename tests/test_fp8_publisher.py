"""Weights on their way from a trainer to an engine in the same process."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_model import random_model

from glmcore import Glm, SamplingParams
from glmcore.engine.engine import Engine
from glmcore.errors import Fp8Error, SyncError
from glmcore.fp8 import WeightPublisher, WeightReceiver, quantize_blocks, weights_checksum
from glmcore.fp8.bucket import ALIGNMENT, Bucket
from glmcore.fp8.layout import is_quantized
from glmcore.model.weights import hf_views
from glmcore.rl.sync import WeightSync

PROMPTS = [[5, 6, 7], [9]]
PARAMS = [SamplingParams(max_tokens=24, seed=seed) for seed in range(2)]
SMALL = 4096
"""Bytes of a bucket: the tiny model takes many, and its embedding is cut."""


def trained(seed: int = 0) -> Glm:
    model = random_model(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def engine() -> Engine:
    return Engine(random_model(torch.float32), stop_token_ids=[1, 2])


def collected(publication) -> list[Bucket]:
    return [replace(bucket, data=bucket.data.clone()) for bucket in publication]


def tensors_of(buckets: list[Bucket]) -> dict[str, torch.Tensor]:
    parts: dict[str, list[torch.Tensor]] = {}
    for bucket in buckets:
        for piece in bucket.pieces:
            parts.setdefault(piece.name, []).append(bucket.tensor(piece).view(torch.uint8))
    return {name: torch.cat(pieces) for name, pieces in parts.items()}


@pytest.mark.parametrize("bucket_bytes", [SMALL, 1 << 20])
def test_the_engine_answers_as_from_the_checkpoint_that_was_exported_and_loaded(tmp_path, bucket_bytes):
    model, rollout = trained(), engine()
    figures = WeightSync(rollout, WeightPublisher(bucket_bytes=bucket_bytes)).push(model, 3)
    model.save_pretrained(tmp_path / "fp8", fp8=True)
    loaded = Glm.from_pretrained(tmp_path / "fp8", dtype=torch.float32)
    held = rollout.model.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in loaded.state_dict().items())
    long_way = Engine(loaded, stop_token_ids=[1, 2]).generate(PROMPTS, PARAMS)
    for got, expected in zip(rollout.generate(PROMPTS, PARAMS), long_way, strict=True):
        assert (got.token_ids, got.logprobs) == (expected.token_ids, expected.logprobs)
        assert got.policy_version == 3
    assert figures.checksum == weights_checksum(hf_views(loaded.state_dict()))
    assert figures.checksum != weights_checksum(hf_views(model.state_dict()))


@pytest.mark.parametrize("bucket_bytes", [SMALL, 1 << 20])
def test_buckets_hold_what_the_checkpoint_holds(tmp_path, bucket_bytes):
    model = trained()
    model.save_pretrained(tmp_path / "fp8", fp8=True)
    expected = load_file(tmp_path / "fp8" / "model.safetensors")
    buckets = collected(WeightPublisher(bucket_bytes=bucket_bytes).publish(0, model.state_dict()))
    got = tensors_of(buckets)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor.view(torch.uint8)) for name, tensor in expected.items())
    assert [bucket.index for bucket in buckets] == list(range(len(buckets)))
    assert (len(buckets) > 10) == (bucket_bytes == SMALL)


@settings(deadline=None, max_examples=25)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8),
    block=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    bucket_bytes=st.integers(1100, 3000),
    scale_format=st.sampled_from(["float32", "ue8m0"]),
)
def test_no_bucket_is_larger_than_asked_and_every_row_is_there(shapes, block, bucket_bytes, scale_format):
    state = {}
    for i, shape in enumerate(shapes):
        state[f"model.layers.{i}.self_attn.q_proj.weight"] = torch.randn(shape)
        state[f"model.layers.{i}.mlp.gate.weight"] = torch.randn(shape)
    publisher = WeightPublisher(bucket_bytes=bucket_bytes, block=block, scale_format=scale_format)
    buckets = collected(publisher.publish(0, iter(state.items())))
    got = tensors_of(buckets)
    targets = {name: torch.full(tensor.shape, torch.nan) for name, tensor in state.items()}
    receiver = WeightReceiver(targets, 0)
    for bucket in buckets:
        assert len(bucket.data) <= bucket_bytes
        assert all(piece.start % ALIGNMENT == 0 for piece in bucket.pieces)
        receiver.load(Bucket.from_header(bucket.header(), bucket.data))
    assert receiver.finish() == weights_checksum(targets) == buckets[-1].weights_checksum
    for name, tensor in state.items():
        rounded = tensor.to(torch.bfloat16)
        if not is_quantized(name):
            assert torch.equal(got[name], rounded.view(torch.uint8))
            continue
        q, scale = quantize_blocks(rounded, block, scale_format)
        assert torch.equal(got[name], q.view(torch.uint8))
        assert torch.equal(got[name + "_scale_inv"], scale.view(torch.uint8))
        if scale_format == "ue8m0":
            assert torch.equal(scale.frexp().mantissa, torch.full_like(scale, 0.5))


def test_while_one_bucket_is_consumed_the_next_is_made_and_no_more():
    row = torch.ones(1, 256)
    reached = [threading.Event() for _ in range(5)]

    def state():
        for i, event in enumerate(reached):
            event.set()
            yield f"t{i}", row

    publisher = WeightPublisher(bucket_bytes=512 + 2 * ALIGNMENT)  # a tensor a bucket
    pointers = set()
    for bucket in publisher.publish(0, state()):
        pointers.add(bucket.data.data_ptr())
        ahead = bucket.index + 2  # of which nothing can be written: both buffers are taken
        if ahead < len(reached):
            assert reached[ahead].wait(10)
        if ahead + 1 < len(reached):
            assert not reached[ahead + 1].wait(0.02)
    assert len(pointers) == 2
    again = {bucket.data.data_ptr() for bucket in publisher.publish(1, state())}
    assert again == pointers


def test_a_large_state_needs_the_memory_of_two_buckets():
    def rss() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    weight = torch.randn(2048, 2048)
    state = [(f"model.layers.{i}.self_attn.q_proj.weight", weight) for i in range(24)]  # 96 MiB of codes
    bucket_bytes = 6 * 2**20
    quantize_blocks(weight[:512].to(torch.bfloat16))  # threads and libraries are there
    before, peak, total = rss(), 0, 0
    for bucket in WeightPublisher(bucket_bytes=bucket_bytes).publish(0, state):
        peak = max(peak, rss())
        total += len(bucket.data)
    assert total > 96 * 2**20
    # Two buckets, and slabs of 2 to 4 MiB: rounded, read back, widened, and what the allocator keeps.
    assert peak - before < 2 * bucket_bytes + 24 * 2**20


def test_high_precision_publishes_the_bfloat16_checkpoint(tmp_path):
    model = trained()
    model.save_pretrained(tmp_path / "bf16")
    rollout = engine()
    rollout.update_weights(1, WeightPublisher(precision="bf16").publish(1, model.state_dict()))
    loaded = Glm.from_pretrained(tmp_path / "bf16", dtype=torch.float32).state_dict()
    assert all(torch.equal(rollout.model.state_dict()[name], tensor) for name, tensor in loaded.items())


def damaged(buckets: list[Bucket]) -> list[Bucket]:
    data = buckets[2].data.clone()
    data[-1] ^= 1
    return [*buckets[:2], replace(buckets[2], data=data), *buckets[3:]]


def renamed(buckets: list[Bucket]) -> list[Bucket]:
    pieces = tuple(replace(p, name=p.name.replace("lm_head", "head")) for p in buckets[-1].pieces)
    return [*buckets[:-1], replace(buckets[-1], pieces=pieces).sealed()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged, r"bucket 2 of version 5 is not what was sent: its checksum differs"),
        (lambda buckets: [buckets[1], buckets[0], *buckets[2:]], r"bucket 1 of version 5 came, expected bucket 0"),
        (lambda buckets: [*buckets[:3], *buckets[2:]], r"bucket 2 of version 5 came, expected bucket 3"),
        (lambda buckets: [*buckets, buckets[-1]], r"came, expected no more"),
        (lambda buckets: buckets[:-1], r"ended after \d+ buckets, before its last"),
        (lambda buckets: [], r"version 5 ended after 0 buckets"),
        (renamed, r"tensor 'head.weight' of shape \[64, 32\] is unknown|comes twice or with rows left out"),
        (lambda buckets: [replace(bucket, version=4).sealed() for bucket in buckets], r"version 4 came in the update to 5"),
        (
            lambda buckets: [*buckets[:-1], replace(buckets[-1], weights_checksum="0" * 32).sealed()],
            r"engine holds weights with the checksum \w{32} after the update to version 5, the trainer's have 000",
        ),
    ],
)  # fmt: skip
def test_an_update_that_is_not_whole_is_refused_and_nothing_sampled_until_one_is(change, message):
    rollout, model, publisher = engine(), trained(), WeightPublisher(bucket_bytes=SMALL)
    rollout.update_weights(4, publisher.publish(4, model.state_dict()))
    buckets = collected(publisher.publish(5, trained(1).state_dict()))
    with pytest.raises(SyncError, match=message):
        rollout.update_weights(5, change(buckets))
    with pytest.raises(SyncError, match=r"a mixture: the update to version 5 did not complete"):
        rollout.generate(PROMPTS, PARAMS)
    rollout.update_weights(5, buckets)
    assert rollout.generate(PROMPTS, PARAMS)[0].policy_version == 5


def test_missing_unknown_misshapen_and_older_weights_are_named():
    rollout, publisher = engine(), WeightPublisher()
    state = trained().state_dict()
    missing = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    with pytest.raises(SyncError, match=r"'lm_head.weight' is missing from the update to version 1"):
        rollout.update_weights(1, publisher.publish(1, missing))
    with pytest.raises(SyncError, match=r"'extra' of shape \[2\] is unknown"):
        rollout.update_weights(1, publisher.publish(1, {**state, "extra": torch.zeros(2)}))
    with pytest.raises(SyncError, match=r"'lm_head.weight' of shape \[3, 3\] is unknown"):
        rollout.update_weights(1, publisher.publish(1, {**state, "lm_head.weight": torch.zeros(3, 3)}))
    rollout.update_weights(9, publisher.publish(9, state))
    with pytest.raises(SyncError, match=r"an update to version 8 came, the engine holds version 9"):
        rollout.update_weights(8, publisher.publish(8, state))
    assert rollout.generate(PROMPTS, PARAMS)[0].policy_version == 9


def test_what_cannot_be_published_is_named_and_the_publisher_goes_on():
    state = trained().state_dict()
    name = "model.layers.1.self_attn.k_proj.weight"
    broken = {**state, name: torch.full_like(state[name], torch.inf)}
    publisher = WeightPublisher(bucket_bytes=SMALL)
    with pytest.raises(Fp8Error, match=rf"tensor '{name}'.*not finite"):
        collected(publisher.publish(0, broken))
    with pytest.raises(Fp8Error, match=r"tensor 'ids' has type torch.int64"):
        collected(publisher.publish(0, {"ids": torch.zeros(2, dtype=torch.int64)}))
    with pytest.raises(Fp8Error, match=r"bucket_bytes=4096 is too little for 1 rows of tensor 'wide'"):
        collected(publisher.publish(0, {"wide": torch.zeros(2, 4000)}))
    publication = publisher.publish(0, state)
    for _ in publication:
        break  # a consumer may go at any time
    with pytest.raises(Fp8Error, match="once"):
        collected(publication)
    engine().update_weights(0, publisher.publish(0, state))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("publishing")]


def test_an_update_that_takes_too_long_says_where_it_was():
    stop = threading.Event()

    def stuck():
        yield "first", torch.zeros(2)
        stop.wait(20)
        yield "second", torch.zeros(2)

    publisher = WeightPublisher(bucket_bytes=SMALL, timeout_s=0.2)
    publication = iter(publisher.publish(7, stuck()))
    threading.Timer(0.6, stop.set).start()
    with pytest.raises(SyncError, match=r"publishing version 7 took longer than 0.2 s; tensor 'first' was being made"):
        next(publication)
    received = iter(publisher.publish(8, {"first": torch.zeros(2)}))
    next(received)
    stop.clear()
    stop.wait(0.3)
    with pytest.raises(SyncError, match=r"took longer than 0.2 s; bucket 0 was being received"):
        next(received)


@pytest.mark.parametrize(
    "header",
    [
        b"", b"[]", b"{}", b'{"version": 1}', b"\xff", b'{"pieces": [[1]]}',
        b'{"version":0,"index":0,"is_last":true,"block":[1,1],"scale_format":"float32","pieces":[["a","F32",[4],[0,4],0]],"checksum":""}',
        b'{"version":0,"index":0,"is_last":true,"block":[1,1],"scale_format":"float32","pieces":[["a","F32",[1],[0,2],0]],"checksum":""}',
        b'{"version":0,"index":0,"is_last":true,"block":[1,1],"scale_format":"float32","pieces":[["a","F32",[1],[0,1],1]],"checksum":""}',
        b'{"version":0,"index":0,"is_last":true,"block":[1,1],"scale_format":"float32","pieces":[["a","I64",[1],[0,1],0]],"checksum":""}',
    ],
)  # fmt: skip
def test_a_header_that_is_none_is_refused(header):
    with pytest.raises(SyncError):
        Bucket.from_header(header, torch.zeros(8, dtype=torch.uint8))
