"""JSON lines, plain or compressed, and files of which each line is a text."""

from collections.abc import Iterator

import orjson

from glmcore.data.readers.record import Limits, Piece, Record, Reject
from glmcore.data.readers.streams import Line, blocks, lines, open_url

_BOM = b"\xef\xbb\xbf"


def read_jsonl(piece: Piece, limits: Limits, reject: Reject) -> Iterator[Record]:
    """The objects of the lines that begin in `piece`."""
    loads = orjson.loads
    for offset, line in read_lines(piece, limits.max_record_bytes, reject):
        try:
            value = loads(line)
        except orjson.JSONDecodeError as error:
            if line.strip():
                reject(f"offset {offset}", *_what_is_wrong(line, error), line)
            continue
        if type(value) is dict:
            yield Record(f"offset {offset}", value)
        else:
            reject(f"offset {offset}", "wrong_type", f"a record is an object, not {type(value).__name__}", line)


def read_text_lines(piece: Piece, limits: Limits, reject: Reject) -> Iterator[Record]:
    """The lines that begin in `piece` and are not blank, each a text."""
    for offset, line in read_lines(piece, limits.max_record_bytes, reject):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            reject(f"offset {offset}", "invalid_utf8", f"at byte {error.start}", line)
            continue
        if text.strip():
            yield Record(f"offset {offset}", {"text": text.rstrip("\r")})


def read_lines(piece: Piece, max_bytes: int, reject: Reject) -> Iterator[Line]:
    """Lines that begin in `piece`."""
    with open_url(piece.url) as file:
        start = piece.start
        if start:
            file.seek(start - 1)
            start += _rest_of_line(file)
        if 0 <= piece.stop <= start:
            return
        content = blocks(file, piece.url, reject)
        for line in lines(content, start, piece.stop, max_bytes, reject):
            yield Line(3, line.data[3:]) if line.offset == 0 and line.data.startswith(_BOM) else line


def _rest_of_line(file: "object") -> int:
    """Go to the byte behind the next line end; gives its place, less one of the place before the call."""
    skipped = 0
    while block := file.readline(1 << 20):  # pyright: ignore[reportAttributeAccessIssue]
        skipped += len(block)
        if block.endswith(b"\n"):
            break
    return skipped - 1


def _what_is_wrong(line: bytes, error: orjson.JSONDecodeError) -> tuple[str, str]:
    try:
        line.decode()
    except UnicodeDecodeError as bad:
        return "invalid_utf8", f"at byte {bad.start}"
    return "invalid_json", str(error)
