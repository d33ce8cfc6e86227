"""Parts: the input of each source, cut so that every core has work and none needs much memory.

The cut follows from the recipe and the files alone, so any number of workers, on one machine or many, works on the
same parts, and what a killed call has finished is found again by the part's key.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmcore.data.config import DataConfig, SourceConfig
from glmcore.data.readers.files import list_pieces
from glmcore.data.readers.record import Piece
from glmcore.errors import DataError

MAX_PIECES = 4_096
"""Files of one part."""
_VERSION = 1
"""Changes when the same input is to be read anew."""


@dataclass(frozen=True)
class Part:
    """A stretch of a source's input."""

    source: SourceConfig
    number: int
    """Position among the parts of its source."""
    name: str
    """The source's name, and the number where there are several."""
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of input, about."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class WorkPlace:
    """Where parts are worked on, below a run's directory."""

    run: str

    def documents(self, name: str) -> Path:
        """Documents of a part."""
        return Path(self.run) / "corpus" / f"{name}.jsonl"

    def rejects(self, name: str) -> Path:
        """Bad records of a part."""
        return Path(self.run) / "rejects" / f"{name}.jsonl"

    def state(self, name: str, kind: str) -> Path:
        """What is known of a part: `read.json`, `hashes.npy`, `verdicts.npy`, `shards.json`."""
        return Path(self.run) / "parts" / f"{name}.{kind}"

    def shards(self) -> Path:
        """Token shards and their manifest."""
        return Path(self.run) / "shards"


def plan_parts(config: DataConfig) -> list[Part]:
    """All parts of all sources, in order.

    Raises:
        DataError: A path leads to nothing that can be read.
    """
    parts: list[Part] = []
    for source in config.sources:
        groups = list(_groups(list_pieces(source, config.part_bytes), config.part_bytes))
        for number, pieces in enumerate(groups):
            name = source.name if len(groups) == 1 else f"{source.name}-{number:05d}"
            parts.append(Part(source, number, name, tuple(pieces)))
    return parts


def _groups(pieces: list[Piece], part_bytes: int) -> Iterator[list[Piece]]:
    """Neighbouring pieces of together `part_bytes`, or one that is larger."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        if group and (size + piece.size > part_bytes or len(group) == MAX_PIECES):
            yield group
            group, size = [], 0
        group.append(piece)
        size += piece.size
    yield group


def reading_key(part: Part, config: DataConfig, seed: int, others: Sequence[str]) -> str:
    """Changes when the documents of a part may; `others` are stamps of what its cleaning reads."""
    source = part.source.model_dump(exclude={"max_documents", "buckets", "shuffle"})
    limits = [config.max_record_bytes, config.max_text_bytes]
    columns = ["qualities"] if part.source.by_quantile else []
    return digest([_VERSION, seed, part.pieces, source, limits, others, columns])


def evaluation_pieces(source: SourceConfig) -> tuple[Piece, ...]:
    """The files of evaluation texts that a source's cleaning looks for.

    Raises:
        DataError: A path leads to nothing that can be read.
    """
    paths = source.cleaning.evaluations
    return tuple(list_pieces(SourceConfig(name="evaluations", paths=paths), sys.maxsize)) if paths else ()


def digest_of_file(path: str) -> str:
    """A name for what a file holds.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def digest(value: Any) -> str:
    """A name for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_state(path: Path) -> dict[str, Any] | None:
    """A record of finished work, None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
