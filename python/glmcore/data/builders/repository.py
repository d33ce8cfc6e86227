"""The files of a repository as documents for long context."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from glmcore.data.builders.files import SourceFile, read_commit, read_directory
from glmcore.data.builders.imports.graph import order_files
from glmcore.data.builders.joined import Measure, cut_text, file_block, join_parts
from glmcore.data.builders.licence import find_licences
from glmcore.data.builders.redact import redact as redacted
from glmcore.data.documents import Document, OnReject

MAX_REPOSITORY_BYTES = 256 * 2**20
"""Text of one repository that is held in memory."""


def repository_documents(
    directory: Path,
    *,
    commit: str | None = None,
    name: str | None = None,
    source: str = "repository",
    max_length: int = 100_000,
    measure: Measure = len,
    redact: bool = True,
    on_reject: OnReject,
) -> Iterator[Document]:
    """Files of a repository one after the other, each after those that it imports, in documents of bounded length.

    A document ends where the next file would make it too long; a file that is too long by itself is cut at line ends,
    and each piece stands under the file's path. See `files` for what is left out.

    Args:
        directory: A directory of files, or a git repository, also a bare one, if `commit` is given.
        commit: Revision whose files are read; None for the files as they lie in the directory.
        name: First part of the documents' ids; the directory's name if None.
        source: Source of the documents.
        max_length: Length of a document at most, by `measure`; the default fits 32,768 tokens of most code.
        measure: Length of a text.
        redact: Leave out e-mail addresses and keys.
        on_reject: Told of each file and directory that is left out.

    Raises:
        DataError: The directory cannot be read, or there is no such commit.

    Source: GLM-4.5 concatenates the files of a repository for training with 32K context (arXiv:2508.06471, section
    2.3). The order, the form and the rules are not published; the order by dependencies is that of DeepSeek-Coder
    (arXiv:2401.14196, section 2.2).
    """
    name = name or directory.absolute().name

    def rejected(path: str, reason: str) -> None:
        on_reject(f"{name}/{path}", reason)

    found = read_directory(directory, rejected) if commit is None else read_commit(directory, commit, rejected)
    files = list(_bounded(found, rejected))
    for file in files:
        if not file.text.strip():
            rejected(file.path, "empty")
    if redact:
        files = [SourceFile(file.path, redacted(file.text)) for file in files]
    yield from file_documents(files, name=name, source=source, max_length=max_length, measure=measure)


def file_documents(
    files: Iterable[SourceFile], *, name: str, source: str, max_length: int, measure: Measure = len
) -> Iterator[Document]:
    """Files of one repository, without the blank ones, in documents; see `repository_documents`."""
    texts = {file.path: file.text for file in files}
    licence = find_licences(SourceFile(path, text) for path, text in texts.items())
    paths = [path for path in order_files(texts) if texts[path].strip()]
    blocks = (block for path in paths for block in _blocks(path, texts[path], max_length, measure))
    for number, text in enumerate(join_parts(blocks, max_length, measure)):
        yield Document(f"{name}#{number}", source, text, licence=licence)


def _blocks(path: str, text: str, max_length: int, measure: Measure) -> Iterator[str]:
    """A file under its path, in pieces if it is longer than a document."""
    block = file_block(path, text)
    if measure(block) <= max_length:
        yield block
        return
    room = max(1, max_length - measure(file_block(path, "")))
    yield from (file_block(path, piece) for piece in cut_text(text, room, measure))


def _bounded(files: Iterable[SourceFile], on_reject: OnReject) -> Iterator[SourceFile]:
    """Files as far as they fit in memory."""
    size = 0
    for file in files:
        size += len(file.text)
        if size > MAX_REPOSITORY_BYTES:
            on_reject(file.path, f"the repository has over {MAX_REPOSITORY_BYTES >> 20} MiB of text")
            size -= len(file.text)
        else:
            yield file
