"""The log of a run's steps: one JSON object a line."""

import json
import math
from pathlib import Path
from typing import Any

from glmcore.durable import write_file
from glmcore.errors import RunError


class MetricLog:
    """Appends a record for each step; every (stage, step) is there once.

    A line that a crash has cut short is dropped: its step is repeated on resume.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        """False on all ranks of a run but the first: nothing is written there."""

    def write(self, stage: str, step: int, **values: Any) -> None:
        """Append a record. A number that JSON cannot hold becomes null."""
        if not self.writes:
            return
        record = {"stage": stage, "step": step, **{name: _plain(value) for name, value in values.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All records, in order.

        Raises:
            RunError: A line other than the last is damaged.
        """
        return read_metrics(self.path)

    def truncate_after(self, stage: str, step: int) -> None:
        """Forget the records that follow `step` of `stage`, those of later stages among them."""
        if not self.writes:
            return
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


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
