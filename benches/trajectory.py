"""The trajectory buffer beside what could stand in its place: Ray's object store, SQLite, torchrl's replay buffer.

A step puts the rollouts of a batch in, with ids, loss mask, log-probabilities and versions as numpy arrays (13 bytes a
token), and takes them out again as arrays. The buffer also admits groups, checks every array, waits for complete
groups, and acknowledges; on disk it waits for the disk after the samples and after the acknowledgement. SQLite writes
one transaction a step with `synchronous=FULL` and a write-ahead log. Ray gets one object a rollout; torchrl one
TensorDict a rollout in a ListStorage, which is in memory only and keeps no groups. All implementations take turns in
one run on one thread; times are CPU times of this process, so what Ray's own processes use does not count, and a rate
is the median over the rounds. `raw write` is a plain write of the bytes that the buffer logs (9 a token) and one
`fdatasync`.

    python benches/trajectory.py
    python benches/trajectory.py --rounds 5 --json
    python benches/trajectory.py --only glmcore --only SQLite
"""

import argparse
import importlib.util
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glmcore import TrajectoryBuffer

Rollout = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.int32]]
ROLLOUTS = 8
"""Of a group."""
SIZES = ((32, 8192), (1024, 1024), (16_384, 64))
"""Tokens of a rollout, rollouts of a step."""
BYTES_PER_TOKEN = 13
DTYPES = (np.int32, np.uint8, np.float32, np.int32)


class Glmcore:
    """The buffer, all of its calls."""

    def __init__(self, place: str, rollouts: int) -> None:
        self.groups = rollouts // ROLLOUTS
        self.buffer = TrajectoryBuffer.open(place, capacity=4 * rollouts, max_staleness=0, groups_per_step=self.groups)
        self.version = 0

    def put(self, rollouts: list[Rollout]) -> None:
        buffer, version = self.buffer, self.version
        source = iter(rollouts)
        for _ in range(self.groups):
            for rollout in buffer.rollouts(buffer.admit("task", ROLLOUTS, version, sync=False)):
                ids, loss_mask, logprobs, _ = next(source)
                buffer.append_tokens(rollout, ids, loss_mask, logprobs, version)
                buffer.finish(rollout, 1.0, sync=False)
        buffer.flush()

    def take(self) -> int:
        lease = self.buffer.take(self.groups, self.version)
        tokens = sum(len(sample.ids) for sample in lease.samples())
        lease.ack()
        self.version += 1
        return tokens


class Sqlite:
    """A row a rollout."""

    def __init__(self, place: str) -> None:
        self.database = sqlite3.connect(f"{place}/trajectories.sqlite", isolation_level=None)
        self.database.execute("PRAGMA journal_mode=WAL")
        self.database.execute("PRAGMA synchronous=FULL")
        self.database.execute(
            "CREATE TABLE rollouts (id INTEGER PRIMARY KEY, reward REAL, a BLOB, b BLOB, c BLOB, d BLOB)"
        )

    def put(self, rollouts: list[Rollout]) -> None:
        self.database.execute("BEGIN")
        for rollout in rollouts:
            self.database.execute(
                "INSERT INTO rollouts (reward, a, b, c, d) VALUES (?, ?, ?, ?, ?)", (1.0, *map(memoryview, rollout))
            )
        self.database.execute("COMMIT")

    def take(self) -> int:
        tokens = 0
        for row in self.database.execute("SELECT a, b, c, d FROM rollouts ORDER BY id"):
            arrays = [np.frombuffer(blob, dtype) for blob, dtype in zip(row, DTYPES, strict=True)]
            tokens += len(arrays[0])
        self.database.execute("DELETE FROM rollouts")
        return tokens


class RayStore:
    """An object a rollout."""

    def __init__(self) -> None:
        import ray

        self.ray = ray
        self.objects: list[Any] = []

    def put(self, rollouts: list[Rollout]) -> None:
        self.objects = [self.ray.put(rollout) for rollout in rollouts]

    def take(self) -> int:
        tokens = sum(len(ids) for ids, _, _, _ in self.ray.get(self.objects))
        self.objects = []
        return tokens


class Torchrl:
    """An entry a rollout, in memory, without replacement."""

    def __init__(self, rollouts: int) -> None:
        from torchrl.data import ListStorage, ReplayBuffer
        from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement

        self.buffer = ReplayBuffer(
            storage=ListStorage(rollouts),
            sampler=SamplerWithoutReplacement(shuffle=False),
            batch_size=rollouts,
            collate_fn=lambda entries: entries,
        )

    def put(self, rollouts: list[Rollout]) -> None:
        import torch
        from tensordict import TensorDict

        names = ("ids", "loss_mask", "logprobs", "versions")
        for rollout in rollouts:
            # A copy, as every other way makes one: the sampler goes on to use its arrays.
            arrays = {name: torch.from_numpy(array.copy()) for name, array in zip(names, rollout, strict=True)}
            self.buffer.add(TensorDict(arrays, batch_size=[]))

    def take(self) -> int:
        tokens = sum(len(entry["ids"].numpy()) for entry in self.buffer.sample())
        self.buffer.empty()
        return tokens


class RawWrite:
    """What the operating system takes for the bytes."""

    def __init__(self, place: str) -> None:
        self.file = (Path(place) / "bytes").open("ab", buffering=0)
        self.tokens = 0

    def put(self, rollouts: list[Rollout]) -> None:
        block = bytes(9 * len(rollouts[0][0]))
        for _ in range(0, len(rollouts)):
            self.file.write(block)
        os.fdatasync(self.file.fileno())
        self.tokens = sum(len(rollout[0]) for rollout in rollouts)

    def take(self) -> int:
        self.file.truncate(0)
        return self.tokens


@contextmanager
def ray_session() -> Iterator[None]:
    """A Ray of this machine."""
    import ray

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=600 * 2**20)
    try:
        yield
    finally:
        ray.shutdown()


def ways(rollouts: int, folder: Path, only: list[str]) -> dict[str, Any]:
    """Every implementation that is installed and wanted."""

    def place(name: str) -> str:
        (folder / name).mkdir()
        return str(folder / name)

    makers: dict[str, Callable[[], Any]] = {
        "glmcore, memory": lambda: Glmcore(":memory:", rollouts),
        "glmcore, disk": lambda: Glmcore(place("glmcore"), rollouts),
        "raw write": lambda: RawWrite(place("raw")),
        "SQLite": lambda: Sqlite(place("sqlite")),
    }
    if importlib.util.find_spec("ray"):
        makers["Ray object store"] = RayStore
    if importlib.util.find_spec("torchrl"):
        makers["torchrl ReplayBuffer"] = lambda: Torchrl(rollouts)
    return {name: make() for name, make in makers.items() if not only or any(word in name for word in only)}


def measure(length: int, count: int, rounds: int, only: list[str]) -> list[dict[str, Any]]:
    """Rates of every implementation for one size."""
    generator = np.random.default_rng(0)
    rollouts: list[Rollout] = [
        (
            generator.integers(0, 150_000, length, np.int32),
            np.ones(length, np.uint8),
            generator.standard_normal(length, np.float32),
            np.zeros(length, np.int32),
        )
        for _ in range(count)
    ]
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        contestants = ways(count, Path(folder), only)
        for number in range(rounds + 1):
            for name, way in contestants.items():
                started = time.process_time()
                way.put(rollouts)
                middle = time.process_time()
                assert way.take() == count * length, name
                if number:  # the first round warms up
                    found.setdefault(name, []).append((middle - started, time.process_time() - middle))
    rows = []
    for name, times in found.items():
        put = statistics.median(put for put, _ in times)
        take = statistics.median(take for _, take in times)
        gigabytes = count * length * BYTES_PER_TOKEN / 1e9
        rows.append(
            {
                "tokens": length,
                "buffer": name,
                "in k/s": count / put / 1e3,
                "out k/s": count / take / 1e3,
                "in and out k/s": count / (put + take) / 1e3,
                "in GB/s": gigabytes / put,
                "out GB/s": gigabytes / take,
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", default=[], help="part of a name; may be repeated")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    wants_ray = importlib.util.find_spec("ray") and (
        not arguments.only or any("Ray" in word for word in arguments.only)
    )
    rows: list[dict[str, Any]] = []
    if wants_ray:
        with ray_session():
            for length, count in SIZES:
                rows += measure(length, count, arguments.rounds, arguments.only)
    else:
        for length, count in SIZES:
            rows += measure(length, count, arguments.rounds, arguments.only)
    if arguments.json:
        print(json.dumps(rows))
        return
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        print(
            "| "
            + " | ".join(
                f"{v:.3g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v for v in row.values()
            )
            + " |"
        )


if __name__ == "__main__":
    main()
