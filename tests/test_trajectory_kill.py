"""A trainer, several samplers and the buffer in one process that is killed again and again, at any moment."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from glmcore import TrajectoryBuffer

OPTIONS = {"capacity": 40, "max_staleness": 3, "groups_per_step": 2, "segment_bytes": 4000}

RUN = """
import json, os, sys, threading, time
from pathlib import Path
from glmcore import TrajectoryBuffer
from glmcore.errors import TrajectoryError

folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
checkpoints = folder / "checkpoints"
checkpoints.mkdir(exist_ok=True)
newest = max(checkpoints.glob("*.json"), key=lambda path: int(path.stem), default=None)
state = json.loads(newest.read_text()) if newest else {"version": 0, "trained": []}
buffer = TrajectoryBuffer.open(str(folder / "buffer"), **options)
buffer.recover(newest.stem if newest else None)
version, lock, mine = [state["version"]], threading.Lock(), set()

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def sample(number):
    while True:
        with lock:
            rollout = next((line.rollout_id for line in buffer.running() if line.rollout_id not in mine), None)
            mine.add(rollout)
        try:
            if rollout is None:
                say("admitted", buffer.admit("task", 2, version[0], timeout=0.01))
                continue
            sampled = max(version[0], max(buffer.partial(rollout).policy_versions, default=0))
            buffer.restart(rollout)
            for turn in range(3):
                buffer.append_tokens(rollout, [rollout] * 20, [1] * 20, [-1.0] * 20, int(sampled), ends_turn=True)
            buffer.finish(rollout, float(rollout))
            say("finished", rollout)
        except TrajectoryError:
            time.sleep(0.001)

for number in range(3):
    threading.Thread(target=sample, args=(number,), daemon=True).start()
leases = []
while True:
    lease = buffer.take(2, version[0])
    assert all(sample.ids.tolist() == [sample.rollout_id] * 60 for sample in lease.samples())
    assert all(sample.reward == sample.rollout_id for sample in lease.samples())
    leases.append(lease)
    state["trained"] += lease.group_ids
    version[0] += 1
    if len(leases) == 3:
        name = str(version[0])
        buffer.prepare(leases, name)
        place = checkpoints / "next"
        place.write_text(json.dumps({"version": version[0], "trained": state["trained"]}))
        place.rename(checkpoints / (name + ".json"))
        buffer.ack(leases, name)
        say("trained", name)
        leases = []
"""


def newest_checkpoint(folder: Path) -> Path | None:
    return max((folder / "checkpoints").glob("*.json"), key=lambda path: int(path.stem), default=None)


def trained_groups(folder: Path) -> list[int]:
    newest = newest_checkpoint(folder)
    return json.loads(newest.read_text())["trained"] if newest else []


def test_killed_at_any_moment_it_loses_nothing_acknowledged_and_trains_nothing_twice(tmp_path):
    chance = random.Random(7)
    admitted, finished, kills = set(), set(), 0
    while kills < 8 or len(trained_groups(tmp_path)) < 12:
        kills += 1
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path), json.dumps(OPTIONS)], stdout=subprocess.PIPE, text=True
        )
        said = [process.stdout.readline()]
        time.sleep(chance.uniform(0.02, 0.3))
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read().splitlines()
        process.stdout.close()
        process.wait()
        for line in said:
            kind, _, number = line.strip().partition(" ")
            {"admitted": admitted, "finished": finished}.get(kind, set()).add(int(number))
    trained = trained_groups(tmp_path)
    assert len(set(trained)) == len(trained)
    with TrajectoryBuffer.open(str(tmp_path / "buffer"), **OPTIONS) as buffer:
        buffer.recover(newest_checkpoint(tmp_path).stem)
        held = {group.group_id: group for group in buffer.groups()}
        assert not held.keys() & set(trained)
        assert admitted <= held.keys() | set(trained)
        running = {line.rollout_id for line in buffer.running()}
        assert not running & finished
        consumed = [group.group_id for lease in buffer.consumed() for group in lease.groups]
        assert sorted(consumed) == sorted(trained)
        stats = buffer.stats()
        assert stats["consumed_groups"] == len(trained)
        assert stats["max_staleness_seen"] <= OPTIONS["max_staleness"]
        assert buffer.task_stats("task").attempts == sum(group.num_done for group in held.values()) + 2 * len(trained)
        assert stats["bytes_on_disk"] < 100_000
