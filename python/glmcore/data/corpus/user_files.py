"""A user's own files as documents."""

import json
from pathlib import Path
from typing import Any

from glmcore.data.documents import Document
from glmcore.errors import DataError
from glmcore.progress import say

SOURCE = "user"
MAX_FILE_BYTES = 64 * 2**20
MAX_DOCUMENT_CHARS = 200_000
"""Longer texts are cut into several documents."""
SUFFIXES = frozenset(
    (
        ".c .cc .cpp .css .go .h .hpp .html .java .js .json .jsonl .md .py .rs .rst .sh .sql .tex .toml .ts .txt"
        " .yaml .yml"
    ).split()
)


def collect_user_files(path: Path) -> list[Document]:
    """Documents of a text file, a JSONL file with `text` or `messages`, or a directory of such files.

    Bad lines and unreadable files of a directory are left out and reported; they do not stop the rest.

    Raises:
        DataError: The path cannot be read, or nothing in it is text.
    """
    if not path.exists():
        raise DataError(f"corpus {path} does not exist")
    files = sorted(file for file in path.rglob("*") if _is_text_file(file)) if path.is_dir() else [path]
    documents: list[Document] = []
    rejects: list[str] = []
    for file in files:
        try:
            documents += _read_file(file, rejects)
        except DataError as error:
            if file == path:
                raise
            rejects.append(str(error))
    for reject in rejects[:20]:
        say(f"left out: {reject}")
    if len(rejects) > 20:
        say(f"left out: {len(rejects) - 20} more")
    if not documents:
        raise DataError(f"corpus {path} holds no text")
    return documents


def _is_text_file(file: Path) -> bool:
    return file.is_file() and file.suffix in SUFFIXES and not any(part.startswith(".") for part in file.parts)


def _read_file(file: Path, rejects: list[str]) -> list[Document]:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{file} is larger than {MAX_FILE_BYTES >> 20} MiB: split it")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text at byte {error.start}") from None
    if file.suffix == ".jsonl":
        return _read_lines(file, text, rejects)
    pieces = range(0, len(text.strip()) and len(text), MAX_DOCUMENT_CHARS)
    return [Document(f"{file}#{at}", SOURCE, text[at : at + MAX_DOCUMENT_CHARS]) for at in pieces]


def _read_lines(file: Path, text: str, rejects: list[str]) -> list[Document]:
    documents: list[Document] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            documents.append(_to_document(f"{file}:{number}", json.loads(line)))
        except (ValueError, DataError) as error:
            rejects.append(f"{file}:{number}: {error}")
    return documents


def _to_document(place: str, value: Any) -> Document:
    if isinstance(value, dict):
        text: Any = value.get("text")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        messages: Any = value.get("messages")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(text, str) and text.strip():
            return Document(place, SOURCE, text)
        if _is_conversation(messages):
            return Document(place, SOURCE, messages=messages)
    raise DataError("neither `text` nor `messages`")


def _is_conversation(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)  # pyright: ignore[reportUnknownArgumentType]
        and all(
            isinstance(message, dict)
            and message.get("role") in ("system", "user", "assistant")  # pyright: ignore[reportUnknownMemberType]
            and isinstance(message.get("content"), str)  # pyright: ignore[reportUnknownMemberType]
            for message in messages  # pyright: ignore[reportUnknownVariableType]
        )
    )
