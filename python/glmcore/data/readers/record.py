"""What readers take and give: pieces of files in, records and rejects out."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from glmcore.errors import DataError

SAMPLE_BYTES = 200
"""Bytes of a bad record that its reject shows."""


class Piece(NamedTuple):
    """A file, or a stretch of one, that is read in one go."""

    url: str
    """What opens it on any machine: an absolute path or an fsspec URL."""
    name: str
    """What people call it, as the recipe has it."""
    format: str
    start: int
    """First byte, or first row group of a Parquet file."""
    stop: int
    """End, -1 for the file's; a record belongs where its first byte lies."""
    size: int
    """Bytes to be read, about."""
    stamp: str
    """Changes when the file does."""


class Record(NamedTuple):
    """A record as it stands in a file."""

    place: str
    """`offset N` in bytes, `row N` or a path."""
    fields: dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """Bounds of what is read."""

    max_record_bytes: int
    max_text_bytes: int


@dataclass
class Rejects:
    """Bad records: a JSON line each, with file, place, reason, detail and the start of the record.

    Use it in a `with` block, which finishes the file.
    """

    path: Path
    """The file they go to."""
    stop: bool
    """Whether the first one ends the work."""
    counts: dict[str, int] = field(default_factory=dict[str, int])
    """Bad records by reason."""
    left_out: dict[str, int] = field(default_factory=dict[str, int])
    """Documents that are not wanted, by reason."""

    def __post_init__(self) -> None:
        self._file = self.path.open("w", encoding="utf-8", newline="\n")

    def add(
        self, file: str, place: str, reason: str, detail: str = "", sample: object = b"", *, num_records: int = 1
    ) -> None:
        """Note a bad record.

        Args:
            file: Name of its file.
            place: Where it lies there.
            reason: One word of what is wrong, to count by.
            detail: What is wrong, for people.
            sample: The record or its start; a few bytes of it are kept.
            num_records: Records that are lost with it.

        Raises:
            DataError: Bad records are to stop the work.
        """
        if self.stop:
            raise DataError(f"{file}: {place}: {reason}{': ' * bool(detail)}{detail}")
        self.counts[reason] = self.counts.get(reason, 0) + num_records
        self._write(file, place, reason, detail, sample, num_records)

    def leave_out(self, file: str, place: str, reason: str, detail: str = "", sample: object = b"") -> None:
        """Note something that is well-formed and not wanted; see `add`."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1
        self._write(file, place, reason, detail, sample, 1)

    def _write(self, file: str, place: str, reason: str, detail: str, sample: object, num_records: int) -> None:
        line: dict[str, Any] = {"file": file, "place": place, "reason": reason, "detail": detail}
        line["sample"] = _sample(sample)
        if num_records != 1:
            line["num_records"] = num_records
        self._file.write(json.dumps(line) + "\n")

    def __enter__(self) -> "Rejects":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


Reject = Callable[..., None]
"""`Rejects.add` with the file filled in."""


def _sample(value: object) -> str:
    if isinstance(value, bytes):
        return value[:SAMPLE_BYTES].decode("utf-8", errors="backslashreplace")
    text = value if isinstance(value, str) else repr(value)
    return text[:SAMPLE_BYTES].encode("utf-8", errors="backslashreplace").decode()
