"""What an asynchronous run has trained on, step by step, and the source of batches that repeats it.

Which rollouts end first depends on time, and the log-probabilities of a token on what else was in its batch, so the
tokens themselves are recorded. Training on the record again gives the same weights bit for bit, as often as it is
killed and gone on with; nothing is sampled.
"""

import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glmcore.durable import write_file
from glmcore.errors import RunError
from glmcore.rl.curriculum.course import Course
from glmcore.rl.loop import Batch, BatchSource, TaskRewards
from glmcore.trajectory import Sample

_ARRAYS = ("ids", "loss_mask", "logprobs", "policy_versions", "turns")
_FIELDS = ("group_id", "rollout_id", "task", "reward", "finish_reason", "failed")


@dataclass(frozen=True)
class RecordedBatch:
    """The batch of a step."""

    group_ids: list[int]
    samples: list[Sample]
    sampled: list[TaskRewards]
    """Of every group that was sampled for the step, dropped ones among them."""


class BatchRecord:
    """A file for each step in one directory, whole or not there.

    Args:
        directory: Made when the first batch is written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(
        self, step: int, group_ids: Sequence[int], samples: Sequence[Sample], sampled: Sequence[TaskRewards]
    ) -> None:
        """Keep the batch of a step; what was recorded of later steps is of a run that went another way, and goes."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for file in self.directory.glob("*.batch"):
            if int(file.stem) > step:
                file.unlink()
        body = io.BytesIO()
        for name in _ARRAYS:
            arrays = [getattr(sample, name) for sample in samples]
            np.save(body, np.array([len(array) for array in arrays], np.int64))
            np.save(body, np.concatenate(arrays))
        for sample in samples:
            body.write(len(sample.extra).to_bytes(8, "little") + sample.extra)
        lines = [[getattr(sample, name) for name in _FIELDS] for sample in samples]
        data = body.getvalue()
        header = {"step": step, "groups": list(group_ids), "sampled": list(sampled), "samples": lines}
        header["crc32"] = zlib.crc32(data)
        write_file(self._file(step), json.dumps(header).encode() + b"\n" + data)

    def read(self, step: int) -> RecordedBatch | None:
        """The batch of a step, if it is recorded.

        Raises:
            RunError: The file is damaged.
        """
        file = self._file(step)
        if not file.exists():
            return None
        line, _, data = file.read_bytes().partition(b"\n")
        try:
            header = json.loads(line)
            _check(data, header["crc32"])
            sampled = [(task, rewards) for task, rewards in header["sampled"]]
            return RecordedBatch(header["groups"], _samples(header["samples"], io.BytesIO(data)), sampled)
        except (ValueError, KeyError, EOFError) as error:
            raise RunError(f"{file} is damaged: {error}") from None

    def steps(self) -> int:
        """How many steps are recorded from the first on, without a gap."""
        step = 0
        while self._file(step + 1).exists():
            step += 1
        return step

    def _file(self, step: int) -> Path:
        return self.directory / f"{step:08d}.batch"


class ReplaySource:
    """Gives the batches of a recorded run, in its order.

    Args:
        record: Of that run.
        course: Learns from the rewards again.
        num_steps: That are wanted.

    Raises:
        RunError: The run has no record of so many steps.
    """

    def __init__(self, record: BatchRecord, course: Course, num_steps: int) -> None:
        self.record = record
        self.course = course
        if record.steps() < num_steps:
            raise RunError(
                f"rl.replay: {record.directory} has {record.steps()} recorded steps, {num_steps} are wanted: a run "
                "with rl.mode='async' and rl.asynchronous.record_rollouts=true writes them"
            )

    def batch(self, step: int, version: int) -> Batch:
        """See `BatchSource.batch`."""
        del version
        found = self.record.read(step)
        assert found is not None, "the constructor has counted the steps"
        return Batch(found.samples, found.sampled)

    def updated(self, step: int, version: int) -> dict[str, Any]:
        """Nobody samples."""
        del step, version
        return {}

    def state_dict(self) -> dict[str, Any]:
        """See `BatchSource.state_dict`."""
        return {"course": self.course.state_dict()}


class RecordingSource:
    """Another source, whose batches are recorded."""

    def __init__(self, source: BatchSource, record: BatchRecord) -> None:
        self.source = source
        self.record = record

    def batch(self, step: int, version: int) -> Batch:
        """See `BatchSource.batch`."""
        batch = self.source.batch(step, version)
        self.record.write(step, batch.lease.group_ids if batch.lease else [], batch.samples, batch.sampled)
        return batch

    def updated(self, step: int, version: int) -> dict[str, Any]:
        """See `BatchSource.updated`."""
        return self.source.updated(step, version)

    def state_dict(self) -> dict[str, Any]:
        """See `BatchSource.state_dict`."""
        return self.source.state_dict()


def _check(data: bytes, checksum: int) -> None:
    if zlib.crc32(data) != checksum:
        raise ValueError("its checksum differs")


def _samples(lines: list[list[Any]], body: io.BytesIO) -> list[Sample]:
    columns: dict[str, list[np.ndarray]] = {}
    for name in _ARRAYS:
        lengths = np.load(body, allow_pickle=False)
        columns[name] = np.split(np.load(body, allow_pickle=False), np.cumsum(lengths)[:-1])
    samples: list[Sample] = []
    for place, line in enumerate(lines):
        extra = body.read(int.from_bytes(body.read(8), "little"))
        fields: dict[str, Any] = dict(zip(_FIELDS, line, strict=True))
        fields |= {name: columns[name][place] for name in _ARRAYS}
        samples.append(Sample(**fields, extra=extra))
    return samples
