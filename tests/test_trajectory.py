import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from glmcore import TrajectoryBuffer
from glmcore.errors import TrajectoryError


def memory(**limits: int) -> TrajectoryBuffer:
    return TrajectoryBuffer.open(":memory:", **{"capacity": 64, "max_staleness": 0, **limits})


def fill(buffer: TrajectoryBuffer, version: int, rewards: list[float]) -> int:
    group = buffer.admit(f"task {version}", len(rewards), version)
    for rollout, reward in zip(buffer.rollouts(group), rewards, strict=True):
        buffer.append_tokens(rollout, [1, 2], [0, 0], [0.0, 0.0], version)
        buffer.append_tokens(rollout, [3], [1], [-0.5], version)
        buffer.finish(rollout, reward)
    return group


def test_what_goes_in_comes_out():
    buffer = memory()
    group = fill(buffer, 0, [0.25, 1.0])
    samples = buffer.take(1, policy_version=0).samples()
    assert [sample.reward for sample in samples] == [0.25, 1.0]
    assert {sample.group_id for sample in samples} == {group}
    for sample in samples:
        assert sample.ids.tolist() == [1, 2, 3]
        assert sample.loss_mask.tolist() == [0, 0, 1]
        assert sample.logprobs.tolist() == [0.0, 0.0, -0.5]
        assert sample.policy_versions.tolist() == [0, 0, 0]
        assert (sample.task, sample.finish_reason, sample.failed) == ("task 0", "stop", None)
        assert (sample.ids.dtype, sample.logprobs.dtype) == (np.int32, np.float32)


def test_unacknowledged_leases_come_again_after_reopening_and_in_order(tmp_path):
    limits = {"capacity": 64, "max_staleness": 0}
    with TrajectoryBuffer.open(str(tmp_path), **limits) as buffer:
        for version in range(4):
            fill(buffer, version, [float(version)])
            lease = buffer.take(1, policy_version=version)
            if version == 0:
                lease.ack()
    with TrajectoryBuffer.open(str(tmp_path), **limits) as buffer:
        assert [group.policy_version for group in buffer.groups()] == [1, 2, 3]
        for version in (1, 2, 3):
            lease = buffer.take(1, policy_version=version)
            assert lease.samples()[0].reward == version
        with pytest.raises(TrajectoryError, match="has been closed"):
            buffer.close() or buffer.stats()


def test_a_failed_rollout_reaches_the_trainer_with_its_reason():
    buffer = memory()
    group = buffer.admit("task", 2, 0)
    first, second = buffer.rollouts(group)
    buffer.finish(first, 1.0)
    buffer.fail(second, "the sandbox was killed")
    samples = buffer.take(1, policy_version=0, timeout=1).samples()
    assert [sample.failed for sample in samples] == [None, "the sandbox was killed"]
    assert buffer.stats()["failed_rollouts"] == 1


def test_a_waiting_taker_lets_other_threads_run_and_wakes_up():
    buffer = memory()
    group = buffer.admit("task", 1, 0)
    taken = []
    taker = threading.Thread(target=lambda: taken.append(buffer.take(1, 0, timeout=20)))
    taker.start()
    time.sleep(0.05)
    assert not taken
    buffer.finish(buffer.rollouts(group)[0], 1.0)
    taker.join(timeout=10)
    assert taken[0].samples()[0].reward == 1.0


def test_a_wait_in_vain_says_what_is_missing():
    buffer = memory()
    buffer.admit("task", 3, 0)
    with pytest.raises(TrajectoryError, match=r"1 are admitted, 3 of their rollouts still run"):
        buffer.take(1, 0, timeout=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, r: b.append_tokens(r, [1, 2], [1], [0.0, 0.0], 1), "2 ids come with 1 loss mask"),
        (lambda b, r: b.append_tokens(r, [1], [1], [0.0], 0), "version 0 cannot follow"),
        (lambda b, r: b.finish(r, float("nan")), "is not finite"),
        (lambda b, r: b.finish(r + 1, 1.0), "does not exist"),
        (lambda b, r: b.admit("too many", 1000, 1), "capacity"),
        (lambda b, r: b.admit("no rollouts", 0, 1), "at least one rollout"),
        (lambda b, r: b.admit("old", 1, 0), "past max_staleness"),
        (lambda b, r: b.discard(99), "group 99 does not exist"),
    ],
)
def test_wrong_calls_are_named(call, message):
    buffer = memory()
    fill(buffer, 0, [1.0])
    buffer.take(1, policy_version=0).ack()
    rollout = buffer.rollouts(buffer.admit("task", 1, 1))[0]
    buffer.append_tokens(rollout, [1], [1], [0.0], 1)
    with pytest.raises(TrajectoryError, match=message):
        call(buffer, rollout)


def test_one_process_at_a_time(tmp_path):
    with (
        TrajectoryBuffer.open(str(tmp_path), capacity=1, max_staleness=0),
        pytest.raises(TrajectoryError, match="another process has"),
    ):
        TrajectoryBuffer.open(str(tmp_path), capacity=1, max_staleness=0)


WRITER = """
import sys
from glmcore import TrajectoryBuffer
buffer = TrajectoryBuffer.open(sys.argv[1], capacity=100_000, max_staleness=100_000)
while True:
    group = buffer.admit("task", 2, 0)
    print("admitted", group, flush=True)
    for rollout in buffer.rollouts(group):
        buffer.append_tokens(rollout, [rollout], [1], [-1.0], 0)
        buffer.finish(rollout, float(rollout))
        print("finished", rollout, flush=True)
"""


@pytest.mark.parametrize("delay", [0.02, 0.11, 0.23, 0.31])
def test_killing_the_process_loses_nothing_acknowledged_and_doubles_nothing(tmp_path, delay):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    first = process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    said = [line.split() for line in [first, *process.stdout.read().splitlines()]]
    process.stdout.close()
    process.wait()
    whole = [(word[0], int(word[1])) for word in said if len(word) == 2]
    with TrajectoryBuffer.open(str(tmp_path), capacity=100_000, max_staleness=100_000) as buffer:
        groups = buffer.groups()
        ids = [group.group_id for group in groups]
        assert len(set(ids)) == len(ids)
        assert {number for kind, number in whole if kind == "admitted"} <= set(ids)
        ready = [group for group in groups if group.state == "ready"]
        samples = buffer.take(len(ready), 0).samples() if ready else []
        got = [sample.rollout_id for sample in samples]
        assert len(set(got)) == len(got)
        assert all(sample.ids.tolist() == [sample.rollout_id] == [int(sample.reward)] for sample in samples)
        finished = {number for kind, number in whole if kind == "finished"}
        in_ready = {rollout for group in ready for rollout in buffer.rollouts(group.group_id)}
        assert finished & in_ready <= set(got)
        assert sum(group.num_done for group in groups) >= len(finished)
