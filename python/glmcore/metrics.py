"""The log of a run's steps: one JSON object a line, and the same as TensorBoard events."""

import json
import math
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glmcore.durable import write_file
from glmcore.errors import RunError


class MetricLog:
    """Appends a record for each step; every (stage, step) is there once.

    A line that a crash has cut short is dropped: its step is repeated on resume.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None) -> None:
        """Go on with a log.

        Args:
            path: Its file.
            tensorboard: Directory of TensorBoard events. Every number of a record is one under its name, that of a
                table under `name/key`, those of stage `rl` under `rl/name`; their step is the record's line.

        Raises:
            RunError: Events are asked for, and the package is not there.
        """
        if tensorboard is not None and find_spec("tensorboard") is None:
            raise RunError("train.tensorboard needs the package tensorboard: pip install 'glmcore[tensorboard]'")
        self.path = path
        self._tensorboard = tensorboard
        self._board: Any = None
        self._line = 0

    def write(self, stage: str, step: int, **values: Any) -> None:
        """Append a record. A number that JSON cannot hold becomes null."""
        record = {"stage": stage, "step": step, **{name: _plain(value) for name, value in values.items()}}
        if self._tensorboard is not None:
            self._write_events(self._tensorboard, record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def sync(self) -> None:
        """Force what was written to the disk."""
        if self.path.exists():
            with self.path.open("a") as file:
                os.fsync(file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Finish the file of events; a later record begins another."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _write_events(self, directory: Path, record: dict[str, Any]) -> None:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._line = len(self.read())
            self._board = SummaryWriter(str(directory), purge_step=self._line + 1)  # hides events of repeated steps
        self._line += 1
        for name, value in _numbers(record):
            self._board.add_scalar(name, value, self._line)

    def read(self) -> list[dict[str, Any]]:
        """All records, in order.

        Raises:
            RunError: A line other than the last is damaged.
        """
        return read_metrics(self.path)

    def truncate_after(self, stage: str, step: int) -> None:
        """Forget the records that follow `step` of `stage`, those of later stages among them."""
        self.close()
        records = self.read()
        place = next((i for i, r in enumerate(records) if r["stage"] == stage and r["step"] > step), len(records))
        write_file(self.path, "".join(json.dumps(record) + "\n" for record in records[:place]))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a log, none if there is no file; see `MetricLog.read`."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                break
            raise RunError(f"{path}:{number}: not a JSON record") from None
    return records


def _numbers(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and values of the events of a record."""
    prefix = "rl/" if record["stage"] == "rl" else ""
    for name, value in record.items():
        values = {f"{name}/{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        yield from ((prefix + key, part) for key, part in values.items() if isinstance(part, int | float))


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
