import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from glmcore import TrajectoryBuffer
from glmcore.errors import BufferFullError, StaleError, TrajectoryError
from glmcore.trajectory import TaskStats, WholeRollout


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


def test_whole_rollouts_in_one_call_are_what_calls_one_by_one_give():
    buffer, spans = memory(), [(2, 0, True), (1, 0, False), (1, 1, True)]
    group = buffer.admit("t", 3, 0)
    first, second, third = buffer.rollouts(group)
    buffer.write(
        [
            WholeRollout(first, [1, 2, 3, 4], [0, 0, 1, 1], [0.0, 0.0, -0.5, -1.5], spans, 0.5, "length", b"x"),
            WholeRollout(second, [], [], [], [], None, "it broke"),
        ]
    )
    arrays = [5, 6], [0, 1], [0.0, -0.25]
    buffer.append_tokens(third, *arrays, 1, ends_turn=True)
    buffer.finish(third, 0.0)
    one, other, last = buffer.take(1, policy_version=0).samples()
    assert (one.ids.tolist(), one.loss_mask.tolist(), one.logprobs.tolist()) == (
        [1, 2, 3, 4],
        [0, 0, 1, 1],
        [0.0, 0.0, -0.5, -1.5],
    )
    assert (one.policy_versions.tolist(), one.turns.tolist()) == ([0, 0, 0, 1], [0, 2, 4])
    assert (one.reward, one.finish_reason, one.failed, one.extra) == (0.5, "length", None, b"x")
    assert (other.failed, len(other.ids)) == ("it broke", 0)
    again = memory()
    [rollout] = again.rollouts(again.admit("t", 1, 0))
    again.write([WholeRollout(rollout, *arrays, [(2, 1, True)], 0.0, "stop")])
    [same] = again.take(1, policy_version=0).samples()
    for name in ("ids", "loss_mask", "logprobs", "policy_versions", "turns"):
        np.testing.assert_array_equal(getattr(same, name), getattr(last, name))


def test_whole_rollouts_whose_spans_do_not_cover_their_tokens_are_refused():
    buffer = memory()
    [rollout] = buffer.rollouts(buffer.admit("t", 1, 0))
    with pytest.raises(TrajectoryError, match="the spans have 1 tokens"):
        buffer.write([WholeRollout(rollout, [1, 2], [1, 1], [0.0, 0.0], [(1, 0, True)], 0.0, "stop")])


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


def test_samples_look_at_the_memory_of_the_buffer_and_outlive_it():
    buffer = memory()
    group = buffer.admit("task", 1, 0)
    rollout = buffer.rollouts(group)[0]
    buffer.append_tokens(rollout, np.arange(100_000), np.ones(100_000), np.zeros(100_000), 0)
    buffer.finish(rollout, 1.0)
    lease = buffer.take(1, 0)
    first, again = lease.samples()[0], lease.samples()[0]
    for name in ("ids", "loss_mask", "logprobs", "policy_versions", "turns"):
        array = getattr(first, name)
        assert np.shares_memory(array, getattr(again, name)), name
        assert not array.flags.writeable
        assert not array.flags.owndata
    lease.ack()
    buffer.close()
    del lease, again, buffer
    np.testing.assert_array_equal(first.ids, np.arange(100_000))


def test_turns_versions_and_what_was_kept_come_out():
    buffer = memory(max_staleness=3)
    rollout = buffer.rollouts(buffer.admit("task", 1, 2))[0]
    buffer.append_tokens(rollout, [1, 2], [0, 0], [0.0, 0.0], 2, ends_turn=True)
    buffer.append_tokens(rollout, [3], [1], [-1.0], 2)
    buffer.append_tokens(rollout, [4], [1], [-1.0], 3, ends_turn=True)
    partial = buffer.partial(rollout)
    assert (partial.ids.tolist(), partial.turns.tolist(), partial.finish_reason) == ([1, 2, 3, 4], [0, 2, 4], None)
    buffer.append_tokens(rollout, [5], [0], [0.0], 3)
    buffer.finish(rollout, 0.5, "length", extra=b"reward parts")
    [sample] = buffer.take(1, 3).samples()
    assert sample.turns.tolist() == [0, 2, 4, 5]
    assert sample.policy_versions.tolist() == [2, 2, 2, 3, 3]
    assert (sample.finish_reason, sample.extra) == ("length", b"reward parts")


def test_refusals_have_classes_of_their_own():
    buffer = memory(capacity=2, max_staleness=1)
    with pytest.raises(BufferFullError, match="3 more would pass the capacity of 2"):
        buffer.admit("task", 3, 0, timeout=0.01)
    assert buffer.room(0) == 2
    buffer.admit("task", 1, 0)
    buffer.admit("task", 1, 0)
    with pytest.raises(BufferFullError):
        buffer.admit("task", 1, 1)
    fill(buffer := memory(), 0, [1.0])
    with pytest.raises(StaleError, match="could be trained past max_staleness 0"):
        buffer.admit("task", 1, 0, timeout=None)


def test_a_hung_rollout_fails_within_its_time_limit_and_wakes_the_trainer():
    buffer = memory()
    group = buffer.admit("task", 1, 0, rollout_timeout=0.05)
    buffer.append_tokens(buffer.rollouts(group)[0], [1], [1], [0.0], 0)
    [sample] = buffer.take(1, 0, timeout=30).samples()
    assert sample.failed == "it did not end within its time limit"
    assert sample.ids.tolist() == [1]


def test_staleness_tasks_and_order_are_kept_on_disk(tmp_path):
    options = {"capacity": 64, "max_staleness": 2, "groups_per_step": 2}
    with TrajectoryBuffer.open(str(tmp_path), **options) as buffer:
        groups = [buffer.admit(task, 2, 0, sync=False) for task in ("easy", "hard", "easy", "hard")]
        for group, reward in zip(groups, (1.0, 0.0, 1.0, 0.5), strict=True):
            for rollout in buffer.rollouts(group):
                buffer.append_tokens(rollout, [1, 2], [0, 1], [0.0, -1.0], 0)
                buffer.finish(rollout, reward, sync=False)
        leases = [buffer.take(2, 0), buffer.take(2, 1)]
        buffer.prepare(leases, "step 2")
        buffer.ack(leases, "step 2")
        with pytest.raises(TrajectoryError, match="has been acknowledged or given back"):
            leases[0].ack()
    with TrajectoryBuffer.open(str(tmp_path), **options) as buffer:
        assert buffer.stats()["staleness"] == {0: 4, 1: 4}
        assert buffer.stats()["max_staleness_seen"] == 1
        assert buffer.task_stats("easy") == TaskStats(attempts=4, passes=4, failures=0, reward_sum=4.0)
        assert buffer.tasks()["hard"].pass_at(2) == 0.0
        assert buffer.task_stats("new").pass_at(1) is None
        taken = buffer.consumed()
        assert [(lease.policy_version, lease.checkpoint) for lease in taken] == [(0, "step 2"), (1, "step 2")]
        assert [group.group_id for lease in taken for group in lease.groups] == groups
        assert taken[0].groups[0].rollouts[0].spans == ((2, 0),)


def test_a_recorded_order_can_be_repeated(tmp_path):
    options = {"capacity": 64, "max_staleness": 3}
    with TrajectoryBuffer.open(str(tmp_path), **options) as buffer:
        groups = [buffer.admit("task", 1, 0) for _ in range(3)]
        for version, group in enumerate(reversed(groups)):
            buffer.finish(buffer.rollouts(group)[0], 1.0)
            buffer.take(1, version).ack()
        order = [[group.group_id for group in lease.groups] for lease in buffer.consumed()]
    assert order == [[group] for group in reversed(groups)]
    replay = memory(max_staleness=3)
    for group in [replay.admit("task", 1, 0) for _ in range(3)]:
        replay.finish(replay.rollouts(group)[0], 1.0)
    for version, group_ids in enumerate(order):
        assert replay.take(1, version, group_ids=group_ids).group_ids == group_ids


FULL = """
import resource, signal, sys
from glmcore import TrajectoryBuffer
from glmcore.errors import TrajectoryError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
buffer = TrajectoryBuffer.open(sys.argv[1], capacity=10**6, max_staleness=10**6)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
finished = []
try:
    while True:
        rollout = buffer.rollouts(buffer.admit("task", 1, 0))[0]
        buffer.append_tokens(rollout, list(range(rollout, rollout + 50)), [1] * 50, [0.0] * 50, 0)
        buffer.finish(rollout, 1.0)
        finished.append(rollout)
except TrajectoryError as error:
    print(error)
try:
    buffer.admit("task", 1, 0)
except TrajectoryError as error:
    print(error)
print(len(finished))
"""


def test_a_full_disk_stops_it_with_an_error_and_loses_nothing_acknowledged(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    first, second, finished = done.stdout.splitlines()
    assert "segment-00000001.log: File too large" in first
    assert second.startswith("the log cannot be written since an earlier error: ")
    assert int(finished) > 10
    with TrajectoryBuffer.open(str(tmp_path), capacity=10**6, max_staleness=10**6) as buffer:
        ready = [group for group in buffer.groups() if group.state == "ready"]
        assert len(ready) >= int(finished)
        for sample in buffer.take(len(ready), 0).samples():
            assert sample.ids.tolist() == list(range(sample.rollout_id, sample.rollout_id + 50))
        buffer.admit("goes on", 1, 0)


def test_the_python_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    guide = Path(__file__).parents[1] / "docs" / "trajectory.md"
    [code] = re.findall(r"```python\n(.*?)```", guide.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "trajectory.md", "exec"), {})
    assert "{0: 4} 1.0" in capsys.readouterr().out
