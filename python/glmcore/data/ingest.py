"""First pass over a part: records to documents, each with a hash; bad records to the rejects."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import orjson

from glmcore.chat import apply_chat_template
from glmcore.data.config import DataConfig, FieldsConfig, SourceConfig
from glmcore.data.documents import Document, to_line
from glmcore.data.parts import Part, WorkPlace
from glmcore.data.readers.git import read_git
from glmcore.data.readers.jsonl import read_jsonl, read_text_lines
from glmcore.data.readers.record import Limits, Piece, Record, Reject, Rejects
from glmcore.data.readers.tables import read_arrow, read_parquet
from glmcore.data.readers.text import read_markdown, read_text
from glmcore.durable import private_file, write_file
from glmcore.errors import RequestError
from glmcore.tokenizer import Tokenizer, train_tokenizer

_PLAIN: dict[str, Callable[[Piece, Limits, Reject], Iterator[Record]]] = {
    "git": read_git,
    "jsonl": read_jsonl,
    "lines": read_text_lines,
    "markdown": read_markdown,
    "text": read_text,
}
_TABLES = {"arrow": read_arrow, "parquet": read_parquet}
LINES_PER_WRITE = 256


@dataclass(frozen=True)
class IngestJob:
    """A part and where its documents go."""

    part: Part
    key: str
    config: DataConfig
    seed: int
    place: WorkPlace


def ingest(job: IngestJob) -> dict[str, Any]:
    """Read a part and write documents, hashes and rejects; gives the record that is written when all is on disk.

    Raises:
        DataError: A bad record is to stop the work, or the disk is full.
    """
    part, place = job.part, job.place
    with ExitStack() as files:
        documents_file = files.enter_context(private_file(place.documents(part.name)))
        hashes_file = files.enter_context(private_file(place.state(part.name, "hashes.npy")))
        rejects_file = files.enter_context(private_file(place.rejects(part.name)))
        rejects = files.enter_context(Rejects(rejects_file, stop=job.config.on_bad_record == "stop"))
        hashes = bytearray()
        num_documents = num_bytes = num_sampled_out = 0
        threshold = round(part.source.sample * 2**64)
        salt = hashlib.sha256(f"{job.seed}/{part.source.name}".encode()).digest()[:16]
        with documents_file.open("wb") as output:
            lines: list[bytes] = []
            for document in read_documents_of(part, job.config, rejects):
                content = content_of(document)
                digest = hashlib.blake2b(content, digest_size=16).digest()
                if threshold < 2**64 and _draw(digest, salt) >= threshold:
                    num_sampled_out += 1
                    continue
                hashes += digest
                lines.append(to_line(document))
                num_documents += 1
                num_bytes += len(content)
                if len(lines) == LINES_PER_WRITE:
                    output.writelines(lines)
                    lines.clear()
            output.writelines(lines)
        with hashes_file.open("wb") as output:
            np.save(output, np.frombuffer(bytes(hashes), np.uint64).reshape(-1, 2))
    record = {
        "key": job.key,
        "pieces": [list(piece) for piece in part.pieces],
        "documents": num_documents,
        "bytes": num_bytes,
        "rejects": dict(sorted(rejects.counts.items())),
        "sampled_out": num_sampled_out,
    }
    write_file(place.state(part.name, "read.json"), orjson.dumps(record))
    return record


def _draw(digest: bytes, salt: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(digest, digest_size=8, salt=salt).digest(), "little")


def content_of(document: Document) -> bytes:
    """What makes two documents the same."""
    if document.text is not None:
        return document.text.encode()
    return orjson.dumps(document.messages, option=orjson.OPT_SORT_KEYS)


def read_documents_of(part: Part, config: DataConfig, rejects: Rejects) -> Iterator[Document]:
    """Documents of a part; what is no document goes to `rejects`."""
    limits = Limits(config.max_record_bytes, config.max_text_bytes)
    fields = part.source.fields
    for piece in part.pieces:
        reject = partial(rejects.add, piece.name)
        to_document = _converter(part.source, piece, fields, reject)
        try:
            for record in _records(piece, fields, limits, reject):
                document = to_document(record)
                if document is not None:
                    yield document
        except OSError as error:
            reject("offset 0", "unreadable_file", str(error))


def _records(piece: Piece, fields: FieldsConfig, limits: Limits, reject: Reject) -> Iterator[Record]:
    if piece.format in _TABLES:
        named = [fields.text, fields.messages, fields.id, fields.quality, *fields.metadata]
        columns = frozenset(name for name in named if name is not None)
        return _TABLES[piece.format](piece, columns, limits, reject)
    return _PLAIN[piece.format](piece, limits, reject)


def _converter(
    source: SourceConfig, piece: Piece, fields: FieldsConfig, reject: Reject
) -> Callable[[Record], Document | None]:
    """What turns the records of a piece into documents."""
    own_fields = piece.format in ("jsonl", "parquet", "arrow")
    field = (fields.messages if source.kind == "conversations" else fields.text) if own_fields else "text"
    id_field = fields.id if own_fields else None
    quality_field = fields.quality if own_fields else None
    metadata = fields.metadata if own_fields else []
    is_chat = source.kind == "conversations"
    expected: type = list if is_chat else str
    name = source.name

    def convert(record: Record) -> Document | None:
        place, values = record
        content: Any = values.get(field)
        if type(content) is not expected:
            if content is None:
                reject(place, "missing_field", f"no {field!r}", values)
            else:
                reject(place, "wrong_type", f"{field!r} is {type(content).__name__}", values)
            return None
        if not content or (not is_chat and content.isspace()):
            reject(place, "empty", f"{field!r} is empty", values)
            return None
        if is_chat and (problem := _problem_of(content)):
            reject(place, "bad_conversation", problem, values)
            return None
        quality = None if quality_field is None else values.get(quality_field)
        quality = 1.0 if quality is None else quality
        if type(quality) not in (float, int) or not -3e38 < quality < 3e38:
            reject(place, "wrong_type", f"{quality_field!r} is no finite number", values)
            return None
        known = values.get(id_field) if id_field is not None else None
        named = str(known) if known is not None else f"{piece.name}:{place}"
        kept = {key: values[key] for key in metadata if key in values} or None
        if is_chat:
            return Document(named, name, messages=content, quality=float(quality), metadata=kept)
        return Document(named, name, content, quality=float(quality), metadata=kept)

    return convert


def _problem_of(messages: list[Any]) -> str | None:
    """Why a conversation cannot be rendered; None where it can."""
    try:
        apply_chat_template(_bytes_tokenizer(), messages)
    except RequestError as error:
        return str(error)
    return None


@cache
def _bytes_tokenizer() -> Tokenizer:
    """A tokenizer without merges, enough to try a template."""
    return train_tokenizer([], 256 + 36, progress=False)
