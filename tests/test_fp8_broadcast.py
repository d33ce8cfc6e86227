"""Weights from a trainer's rank to an engine's rank, over gloo in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RANK = r"""
import json, os, sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from conftest import TINY
from test_fp8_publisher import PARAMS, PROMPTS, collected, engine, trained
from glmcore.errors import GlmcoreError
from glmcore.fp8 import WeightBroadcast, WeightPublisher
from dataclasses import replace

rank, told = int(sys.argv[1]), {}
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
model, rollout = trained(), engine()
plain = model.state_dict()
publisher = WeightPublisher(bucket_bytes=4096)
broadcast = WeightBroadcast(timeout_s=20)

def attempt(name, call):
    try:
        told[name] = call()
    except GlmcoreError as error:
        told[name] = f"{type(error).__name__}: {error}"

# A sharded state gives the buckets of the whole one; rank 1 has a part and no engine to feed.
sharded = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in plain.items()}
if rank == 0:
    buckets = [(b.header(), bytes(b.data.numpy())) for b in collected(publisher.publish(1, sharded))]
    assert buckets == [(b.header(), bytes(b.data.numpy())) for b in collected(publisher.publish(1, plain))]
    told["num_buckets"] = len(buckets)
else:
    publisher.take_part(sharded)

# Gathering in one thread while buckets go out in another.
if rank == 0:
    attempt("sharded", lambda: broadcast.send(publisher.publish(2, sharded)))
else:
    import threading
    thread = threading.Thread(target=publisher.take_part, args=(sharded,))
    thread.start()
    attempt("sharded", lambda: broadcast.receive(2, rollout.update_weights))
    thread.join()
    told["tokens"] = [g.token_ids for g in rollout.generate(PROMPTS, PARAMS)]
    told["version"] = rollout.policy_version

# The receiver refuses; the trainer hears why, and the next update works.
attempt("older", lambda: broadcast.send(publisher.publish(1, plain)) if rank == 0
        else broadcast.receive(1, rollout.update_weights))
extra = {**plain, "extra": torch.zeros(3)}
attempt("foreign", lambda: broadcast.send(publisher.publish(3, extra)) if rank == 0
        else broadcast.receive(3, rollout.update_weights))
# The trainer cannot go on; the receiver hears why.
broken = {**plain, "model.layers.2.self_attn.q_proj.weight": torch.full((64, 32), torch.nan)}
attempt("broken", lambda: broadcast.send(publisher.publish(3, broken)) if rank == 0
        else broadcast.receive(3, rollout.update_weights))
attempt("again", lambda: broadcast.send(publisher.publish(3, plain)) if rank == 0
        else broadcast.receive(3, rollout.update_weights))
# Nobody sends: an error after the timeout, not a silent wait.
short = WeightBroadcast(timeout_s=1)
if rank == 1:
    attempt("silent", lambda: short.receive(4, rollout.update_weights))
print(json.dumps(told))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[dict]:
    """What each rank has to say."""
    store = tmp_path_factory.mktemp("store") / "store"
    here = str(Path(__file__).parent)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(store)],
            cwd=here,
            env={**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors for _, errors in ends)
    return [json.loads(output.splitlines()[-1]) for output, _ in ends]


def test_a_sharded_state_reaches_the_engine_on_another_rank(told):
    from test_fp8_publisher import PARAMS, PROMPTS, engine, trained

    from glmcore.fp8 import WeightPublisher

    here = engine()
    checksum = here.update_weights(2, WeightPublisher().publish(2, trained().state_dict()))
    trainer, receiver = told
    assert trainer["num_buckets"] > 10
    assert trainer["sharded"] == receiver["sharded"] == checksum
    assert receiver["version"] == 2
    assert receiver["tokens"] == [generation.token_ids for generation in here.generate(PROMPTS, PARAMS)]


def test_each_side_hears_why_the_other_could_not_and_the_next_update_works(told):
    trainer, receiver = told
    assert receiver["older"] == "SyncError: an update to version 1 came, the engine holds version 2"
    assert trainer["older"].startswith(
        "SyncError: version 1 did not reach the engine on rank 1: an update to version 1"
    )
    assert "'extra' of shape [3] is unknown" in receiver["foreign"]
    assert "version 3 did not reach the engine on rank 1: tensor 'extra'" in trainer["foreign"]
    assert trainer["broken"].startswith("Fp8Error: tensor 'model.layers.2.self_attn.q_proj.weight'")
    assert "the trainer could not publish version 3: tensor 'model.layers.2" in receiver["broken"]
    assert trainer["again"] == receiver["again"] == receiver["sharded"]


def test_nobody_waits_for_ever(told):
    assert "version 4" in told[1]["silent"]
    assert told[1]["silent"].startswith(("_TransportError", "SyncError"))
