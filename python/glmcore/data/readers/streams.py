"""Bytes of files, compressed or not, and the lines in them; never a whole file in memory."""

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import fsspec

from glmcore.data.readers.record import Reject
from glmcore.errors import DataError

BLOCK_BYTES = 1 << 20
ZSTD_BLOCK_BYTES = 1 << 16
"""Smaller: a read that meets damage gives nothing, so up to this much before it is lost."""
_ANY_GZIP = 31  # zlib's window bits for a gzip header


class Line(NamedTuple):
    """A line without its end."""

    offset: int
    """Where it begins in the uncompressed file."""
    data: bytes


def open_url(url: str) -> Any:
    """A readable, seekable binary file.

    Raises:
        OSError: It cannot be opened.
    """
    filesystem, path = fsspec.url_to_fs(url)
    return filesystem.open(path, "rb")


def blocks(file: Any, name: str, reject: Reject) -> Iterator[bytes]:
    """Content of an open file, uncompressed by the end of its name; damage is rejected and ends the file.

    What comes before the damage is given.
    """
    if name.endswith(".gz"):
        yield from _gunzip(file, reject)
    elif name.endswith(".zst"):
        yield from _unzstd(file, reject)
    else:
        while block := file.read(BLOCK_BYTES):
            yield block


def _gunzip(file: Any, reject: Reject) -> Iterator[bytes]:
    """All members of a gzip file. Python's own reader drops what it has read of a damaged block."""
    decompressor = zlib.decompressobj(_ANY_GZIP)
    given = 0
    pending = b""
    while True:
        pending = pending or file.read(BLOCK_BYTES)
        before = decompressor.copy()
        try:
            data = decompressor.decompress(pending, BLOCK_BYTES)
        except zlib.error as error:
            if pending.strip(b"\0"):  # zeros behind the last member are padding, as gzip itself has it
                data = _until_damage(before, pending)
                yield data
                reject(f"offset {given + len(data)}", "damaged_file", f"gzip: {error}")
            return
        if data:
            given += len(data)
            yield data
        if decompressor.eof:
            pending = decompressor.unused_data or file.read(BLOCK_BYTES)
            if not pending:
                return
            decompressor = zlib.decompressobj(_ANY_GZIP)
        elif decompressor.unconsumed_tail:
            pending = decompressor.unconsumed_tail
        elif pending or data:
            pending = b""
        else:
            reject(f"offset {given}", "damaged_file", "gzip: the file ends early")
            return


def _until_damage(decompressor: Any, pending: bytes) -> bytes:
    """What still comes out of a block that raises: zlib gives nothing of a call that fails, so steps get smaller."""
    found = bytearray()
    for step in (4_096, 64, 1):
        while pending:
            before, left = decompressor.copy(), pending
            try:
                found += decompressor.decompress(pending, step)
                pending = decompressor.unconsumed_tail
            except zlib.error:
                decompressor, pending = before, left
                break
    return bytes(found)


def _unzstd(file: Any, reject: Reject) -> Iterator[bytes]:
    """All frames of a Zstandard file."""
    pyarrow = import_pyarrow(".zst files")
    given = 0
    with pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd") as stream:
        while True:
            try:
                data = stream.read(ZSTD_BLOCK_BYTES)
            except OSError as error:
                reject(f"offset {given}", "damaged_file", f"zstd: {error}")
                return
            if not data:
                return
            given += len(data)
            yield data


def lines(content: Iterator[bytes], start: int, stop: int, max_bytes: int, reject: Reject) -> Iterator[Line]:
    r"""Lines of `content` that begin before `stop`, -1 for all; longer ones are rejected without being kept.

    Args:
        content: Bytes from place `start` on.
        start: Place of the first byte.
        stop: Place of the first line that is not wanted.
        max_bytes: Bytes of a line, without its end.
        reject: Takes lines that are too long.
    """
    offset = start  # of the line that `rest` begins
    rest = head = b""
    lost = 0  # bytes of a line that is too long, less what `rest` holds of it
    for block in content:
        pieces = (rest + block).split(b"\n")
        rest = pieces.pop()
        for piece in pieces:
            length = lost + len(piece)
            if 0 <= stop <= offset:
                return
            if length > max_bytes:
                _too_long(reject, offset, length, max_bytes, piece if not lost else head)
            else:
                yield Line(offset, piece)
            offset += length + 1
            lost = 0
        if lost + len(rest) > max_bytes:
            head = rest[:256] if not lost else head
            lost += len(rest)
            rest = b""
    if (rest or lost) and not 0 <= stop <= offset:
        if lost:
            _too_long(reject, offset, lost + len(rest), max_bytes, head)
        else:
            yield Line(offset, rest)


def _too_long(reject: Reject, offset: int, length: int, max_bytes: int, head: bytes) -> None:
    reject(f"offset {offset}", "too_long", f"{length} bytes, data.max_record_bytes is {max_bytes}", head)


def import_pyarrow(what: str) -> Any:
    """The module pyarrow, with its parts.

    Raises:
        DataError: It is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{what} need pyarrow: pip install 'glmcore[data]'") from None
    return pa
