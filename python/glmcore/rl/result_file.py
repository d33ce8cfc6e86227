"""Results that come in one by one and survive a kill: JSON lines, the first of which says what was asked."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glmcore.durable import write_file
from glmcore.errors import RunError


class ResultFile:
    """A file that is being written; what a killed process has found stays.

    Args:
        file: JSONL. The directory is made if it is not there.
        asked: What the results depend on, plain JSON values.

    Raises:
        RunError: The file is damaged, or holds results of something else.
    """

    def __init__(self, file: Path, asked: Mapping[str, Any]) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = list(_lines(file)) if file.exists() else []
        if lines and lines[0].get("asked") != dict(asked):
            raise RunError(f"{file} was made for other settings or another policy: remove it to begin anew")
        whole = [json.dumps(line, ensure_ascii=False) for line in lines] or [json.dumps({"asked": dict(asked)})]
        self.done = {line["id"] for line in lines if "id" in line}
        write_file(file, "".join(f"{line}\n" for line in whole))  # without a last line that was cut short
        self._out = file.open("a", encoding="utf-8")

    def add(self, id_: str, **values: Any) -> None:
        """Record a result."""
        self._out.write(json.dumps({"id": id_, **values}, ensure_ascii=False) + "\n")
        self._out.flush()
        self.done.add(id_)

    def close(self) -> None:
        """Close the file."""
        self._out.close()


def read_results(file: Path) -> list[dict[str, Any]]:
    """The results in a file, in the order they were found.

    Raises:
        RunError: The file is damaged.
    """
    return [line for line in _lines(file) if "id" in line]


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; the last may have been cut short."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines):
                raise RunError(f"{file}:{number}: not a JSON record: remove the file to begin anew") from None
