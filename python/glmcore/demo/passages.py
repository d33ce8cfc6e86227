"""Files of text in passages that a search finds and an answer cites."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from glmcore.errors import DataError

PROSE = (".md", ".txt", ".rst", ".tex", ".org", ".adoc", ".html", ".json", ".toml", ".yaml", ".yml", ".csv")
CODE = (".py", ".rs", ".c", ".h", ".cpp", ".cu", ".go", ".java", ".js", ".ts", ".sh", ".sql")
SUFFIXES = frozenset((*PROSE, *CODE))
"""Endings of files that are read in a folder. A file that is named itself is read whatever it is called."""
PASSAGE_CHARACTERS = 1200
"""A passage ends at the first empty line, or else line, after so many characters."""
MAX_FILE_BYTES = 4 << 20
"""Larger files in a folder are no documents."""


@dataclass(frozen=True)
class Passage:
    """Lines of a file."""

    number: int
    """What cites it: 1, 2, ..."""
    path: str
    first_line: int
    last_line: int
    text: str

    @property
    def source(self) -> str:
        """Where it stands."""
        return f"{self.path}:{self.first_line}-{self.last_line}"


def read_passages(paths: Iterable[Path]) -> list[Passage]:
    """The passages of files, and of all files of text in folders, in the order of their names.

    Raises:
        DataError: There is no such path, a file is not UTF-8, or there is no text at all.
    """
    passages: list[Passage] = []
    for file in _files(paths):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{file} is not UTF-8 text: convert it, or name other files") from None
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}") from None
        for first, last, part in _split(text):
            passages.append(Passage(len(passages) + 1, str(file), first, last, part))
    if not passages:
        raise DataError("there is no text to search: name files, or folders that hold some")
    return passages


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_file():
            yield path
        elif path.is_dir():
            for file in sorted(path.rglob("*")):
                hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
                if file.suffix in SUFFIXES and not hidden and file.is_file() and file.stat().st_size <= MAX_FILE_BYTES:
                    yield file
        else:
            raise DataError(f"{path} is neither a file nor a folder")


def _split(text: str) -> Iterator[tuple[int, int, str]]:
    """First line, last line and text of each passage; lines count from 1."""
    start, size, lines = 0, 0, text.split("\n")
    for number, line in enumerate(lines):
        size += len(line) + 1
        is_last = number + 1 == len(lines)
        if is_last or (size >= PASSAGE_CHARACTERS and (not line.strip() or size >= 2 * PASSAGE_CHARACTERS)):
            part = "\n".join(lines[start : number + 1])
            if part.strip():
                yield start + 1, number + 1, part
            start, size = number + 1, 0
