"""The directory of an evaluation: what it is, and every answer as soon as it is judged.

`answers.jsonl` only grows, a whole line at a time, each on the disk before it counts. So an evaluation that is killed
goes on where it was, and a line that was cut short is asked for again.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from glmcore.durable import write_file
from glmcore.errors import DataError, RunError

SETTINGS = "eval.json"
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of an evaluation, up to the weights and the machine's arithmetic."""

    model: str
    suites: list[str]
    num_problems: int
    num_samples: int
    seed: int
    sampling: dict[str, Any]
    problems_digest: str
    """Of all questions with their answers; see `glmcore.eval.problems.digest`."""


@dataclass(frozen=True)
class Record:
    """One answer with its verdict."""

    problem: str
    sample: int
    """From 0."""
    suite: str
    category: str
    score: float
    """In [0, 1]."""
    extracted: str | None
    reason: str
    """Why it is not right."""
    finish_reason: str
    num_tokens: int
    seconds: float
    question: str
    reasoning: str
    content: str


class Records:
    """The records of an evaluation. Made by `open_records`."""

    def __init__(self, file: IO[bytes], found: list[Record]) -> None:
        self._file = file
        self.found = found

    def add(self, record: Record) -> None:
        """Append a record; it is on the disk when this returns."""
        self._file.write(json.dumps(asdict(record), ensure_ascii=False).encode(errors="replace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.found.append(record)


@contextmanager
def open_records(directory: Path, settings: Settings) -> Iterator[Records]:
    """Begin an evaluation or go on with it; one process at a time.

    Raises:
        RunError: The directory holds something else, or an evaluation with other settings, or another process works
            there.
    """
    told = directory / SETTINGS
    if directory.is_dir() and not told.exists() and any(directory.iterdir()):
        raise RunError(f"{directory} is not empty and holds no evaluation: choose another with --out")
    directory.mkdir(parents=True, exist_ok=True)
    if told.exists():
        before = read_settings(directory)
        for field, value in asdict(settings).items():
            if getattr(before, field) != value:
                raise RunError(
                    f"{directory} was begun with another {field}: repeat it, or choose another directory with --out"
                )
    with (directory / ANSWERS).open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another process works in {directory}") from None
        write_file(told, json.dumps(asdict(settings), indent=1, ensure_ascii=False) + "\n")
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
        yield Records(file, read_records(directory))


def read_settings(directory: Path) -> Settings:
    """What an evaluation is.

    Raises:
        DataError: There is none, or its file is damaged.
    """
    file = directory / SETTINGS
    try:
        return Settings(**json.loads(file.read_text(encoding="utf-8")))
    except OSError:
        raise DataError(f"{directory} holds no evaluation: there is no {SETTINGS}") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: is damaged: {error}") from None


def read_records(directory: Path) -> list[Record]:
    """All whole records, in the order they were made.

    Raises:
        DataError: A line is damaged.
    """
    file = directory / ANSWERS
    try:
        lines = file.read_bytes().split(b"\n")[:-1]
    except OSError:
        raise DataError(f"{directory} holds no answers: there is no {ANSWERS}") from None
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(Record(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{file}:{number}: is damaged: {error}") from None
    return records
