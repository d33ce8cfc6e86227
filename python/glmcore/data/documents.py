"""Documents: what a corpus is made of, and their form on disk."""

import array
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import orjson

from glmcore.durable import atomic_file
from glmcore.errors import DataError

Record = tuple[str, dict[str, Any]]
"""Where a record was read, for people, and its fields."""
OnReject = Callable[[str, str], None]
"""Called with the place of what is left out, and the reason."""


@dataclass(frozen=True)
class Document:
    """One document: plain text, or a conversation."""

    id: str
    """Where it comes from."""
    source: str
    """Name of the source whose share of a mixture it belongs to."""
    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    """A conversation, as `glmcore.chat.apply_chat_template` takes it."""
    quality: float = 1.0
    middle: tuple[int, int] | None = None
    """Characters of the text that are asked for between the rest: fill-in-the-middle."""
    middle_order: Literal["psm", "spm"] | None = None
    """What comes before the middle: prefix and suffix (`psm`, also where None) or suffix and prefix (`spm`)."""
    tools: list[dict[str, Any]] | None = None
    """Function descriptions that a conversation starts with."""
    licence: str | None = None
    """SPDX identifiers of the licences that were found beside the text, joined by ` AND `; None if there were none."""
    metadata: dict[str, Any] | None = None
    """What else is known of it; kept beside it, never learned."""

    @property
    def plain_text(self) -> str:
        """All that was written, for learning a vocabulary."""
        if self.text is not None:
            return self.text
        said = (message.get(key) for message in self.messages or () for key in ("reasoning_content", "content"))
        return "\n".join(part for part in said if isinstance(part, str))


def without_surrogates(text: str) -> str:
    """Text with a replacement character for each lone surrogate, which JSON may hold and no file can."""
    return text if text.isascii() else text.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")


@dataclass(frozen=True)
class DocumentStats:
    """What was written."""

    num_documents: int
    num_bytes: int


def write_documents(path: Path, documents: Iterable[Document]) -> DocumentStats:
    """Write documents as JSON lines; the file appears whole or not at all."""
    count = 0
    with atomic_file(path) as temporary:
        with temporary.open("wb") as file:
            for document in documents:
                file.write(to_line(document))
                count += 1
        size = temporary.stat().st_size
    return DocumentStats(count, size)


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of a file written by `write_documents`.

    Raises:
        DataError: The file cannot be read, or a line is no document.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield _from_json(orjson.loads(line))
                except (ValueError, TypeError, AttributeError, IndexError):
                    raise DataError(f"{path}:{number}: not a document") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def pick_documents(path: Path, numbers: Sequence[int]) -> Iterator[Document]:
    """Documents of a file written by `write_documents`, in the order of `numbers`, from 0; 8 bytes in memory for each.

    Raises:
        DataError: The file cannot be read, or a line is no document.
    """
    if not numbers:
        return
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            ends = _line_ends(file)
            for number in numbers:
                line = content[ends[number] : ends[number + 1]]
                try:
                    yield _from_json(orjson.loads(line))
                except (ValueError, TypeError, AttributeError, IndexError):
                    raise DataError(f"{path}:{number + 1}: not a document") from None
    except DataError:
        raise
    except (OSError, ValueError, IndexError) as error:  # a file that is empty or too short as well
        raise DataError(f"cannot read {path}: {error}") from None


def _line_ends(file: IO[bytes]) -> "array.array[int]":
    """Where each line ends, behind a 0."""
    ends = array.array("q", [0])
    offset = 0
    while block := file.read(1 << 20):
        found = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + (offset + 1)
        ends.frombytes(found.astype(np.int64).tobytes())
        offset += len(block)
    return ends


def _from_json(fields: dict[str, Any]) -> Document:
    middle = fields.pop("middle", None)
    return Document(**fields, middle=None if middle is None else (int(middle[0]), int(middle[1])))


def to_line(document: Document) -> bytes:
    """A document as a JSON line, its end included."""
    known = {name: value for name, value in vars(document).items() if value is not None}
    return orjson.dumps(known, default=str, option=orjson.OPT_APPEND_NEWLINE)
