"""Text and Markdown files: a file is a document, a long one several."""

import re
from collections.abc import Iterator

from glmcore.data.readers.record import Limits, Piece, Record, Reject
from glmcore.data.readers.streams import blocks, open_url

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n.*?\n(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def read_text(piece: Piece, limits: Limits, reject: Reject) -> Iterator[Record]:
    """The file's text, cut at line ends where it is long."""
    with open_url(piece.url) as file:
        offset = 0
        for data in cut(blocks(file, piece.url, reject), limits.max_text_bytes):
            try:
                text = data.decode("utf-8-sig" if offset == 0 else "utf-8")
            except UnicodeDecodeError as error:
                reject(f"offset {offset}", "invalid_utf8", f"at byte {offset + error.start}", data)
            else:
                yield Record(f"offset {offset}", {"text": text})
            offset += len(data)


def read_markdown(piece: Piece, limits: Limits, reject: Reject) -> Iterator[Record]:
    """The file's text without the front matter (a first block between lines of three dashes)."""
    for record in read_text(piece, limits, reject):
        if record.place == "offset 0":
            text: str = record.fields["text"]
            record.fields["text"] = _FRONT_MATTER.sub("", text, count=1)
        yield record


def cut(content: Iterator[bytes], max_bytes: int) -> Iterator[bytes]:
    """All bytes in stretches of `max_bytes` or less, each up to a line end, else up to the end of a character."""
    pending = b""
    for block in content:
        pending += block
        while len(pending) > max_bytes:
            end = pending.rfind(b"\n", 0, max_bytes) + 1
            if not end:
                end = max_bytes
                while end > max(max_bytes - 4, 1) and pending[end] & 0xC0 == 0x80:  # not the first byte of a character
                    end -= 1
            yield pending[:end]
            pending = pending[end:]
    if pending:
        yield pending
