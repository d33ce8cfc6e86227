"""The result of an offline pass over the tasks: one JSON object a task, after one that says what was asked."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glmcore.durable import write_file
from glmcore.errors import RunError
from glmcore.rl.curriculum.difficulty import PassRecord


def read_probe(file: Path) -> dict[str, PassRecord]:
    """Attempts of each task that the pass has decided, by task id.

    Raises:
        RunError: The file is damaged.
    """
    return {line["id"]: PassRecord(**line["record"]) for line in _lines(file) if "id" in line}


class ProbeFile:
    """A result that is being written; what a killed pass has decided stays.

    Args:
        file: JSONL.
        asked: What the result depends on.

    Raises:
        RunError: The file is damaged, or holds the result of something else.
    """

    def __init__(self, file: Path, asked: Mapping[str, Any]) -> None:
        self.file = file
        lines = list(_lines(file)) if file.exists() else []
        if lines and lines[0].get("probe") != dict(asked):
            raise RunError(f"{file} was made for other settings or another policy: remove it to probe anew")
        whole = [json.dumps(line, ensure_ascii=False) for line in lines] or [json.dumps({"probe": dict(asked)})]
        self.done = {line["id"] for line in lines if "id" in line}
        write_file(file, "".join(f"{line}\n" for line in whole))  # without a last line that was cut short
        self._out = file.open("a", encoding="utf-8")

    def add(self, task_id: str, family: str, record: PassRecord, difficulty: str, *, verified: bool) -> None:
        """Record a decided task."""
        line = {
            "id": task_id,
            "task": family,
            "difficulty": difficulty,
            "verified": verified,
            "record": record.to_dict(),
        }
        self._out.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._out.flush()
        self.done.add(task_id)

    def close(self) -> None:
        """Close the file."""
        self._out.close()


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; the last may have been cut short."""
    lines = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines):
                raise RunError(f"{file}:{number}: not a JSON record: remove the file to probe anew") from None
