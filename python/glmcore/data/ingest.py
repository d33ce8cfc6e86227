"""First pass over a part: records to documents, cleaned; what finds copies among them; bad records to the rejects."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import IO, Any, TypeVar

import numpy as np
import orjson

from glmcore.data.assess import assess
from glmcore.data.cleaning import exact_hashes, minhash_signatures
from glmcore.data.config import DataConfig, SourceConfig
from glmcore.data.convert import Found, find_documents
from glmcore.data.documents import Document, to_line
from glmcore.data.encoder import embed
from glmcore.data.parts import Part, WorkPlace
from glmcore.data.readers.record import Limits, Piece, Rejects
from glmcore.durable import private_file, write_file

DOCUMENTS_PER_BATCH = 512
CHARS_PER_BATCH = 4 << 20
"""A batch ends with the document that reaches either."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class IngestJob:
    """A part and where its documents go."""

    part: Part
    key: str
    config: DataConfig
    seed: int
    place: WorkPlace
    evaluations: tuple[Piece, ...] = ()
    """Files of evaluation texts that its cleaning looks for."""
    num_threads: int = 1


def ingest(job: IngestJob) -> dict[str, Any]:
    """Read a part and write what is known of it; gives the record that is written when all is on disk.

    Raises:
        DataError: A bad record is to stop the work, or the disk is full.
    """
    part, place = job.part, job.place
    with ExitStack() as files:

        def output(path: Any) -> IO[bytes]:
            return files.enter_context(files.enter_context(private_file(path)).open("wb"))

        rejects_file = files.enter_context(private_file(place.rejects(part.name)))
        rejects = files.enter_context(Rejects(rejects_file, stop=job.config.on_bad_record == "stop"))
        columns = _Columns(part.source)
        outputs = {name: output(place.state(part.name, name)) for name in columns.names}
        documents = output(place.documents(part.name))
        batch_of = _Batches(part, job, rejects)
        num_bytes = 0
        for batch in batch_of:
            lines = [to_line(document) for document in batch]
            documents.writelines(lines)
            num_bytes += sum(map(len, lines))
            for name, rows in columns.of(batch, job.num_threads).items():
                outputs[name].write(rows.tobytes())
    record = {
        "key": job.key,
        "pieces": [list(piece) for piece in part.pieces],
        "documents": batch_of.num_documents,
        "bytes": num_bytes,
        "rejects": dict(sorted(rejects.counts.items())),
        "left_out": dict(sorted(rejects.left_out.items())),
    }
    write_file(place.state(part.name, "read.json"), orjson.dumps(record))
    return record


def content_of(document: Document) -> str:
    """What cleaning looks at, and what makes two documents the same."""
    if document.text is not None:
        return document.text
    return orjson.dumps(document.messages, option=orjson.OPT_SORT_KEYS).decode()


class _Columns:
    """What the search for copies needs of each document: arrays that are written row by row, without a header."""

    def __init__(self, source: SourceConfig) -> None:
        rule = source.cleaning
        self._exact = rule.exact_duplicates == "drop"
        self._near = rule.near_duplicates is not None
        self._encoder = None if rule.semantic_duplicates is None else rule.semantic_duplicates.encoder
        self._qualities = self._near or self._encoder is not None or source.by_quantile
        self.names = ["hashes"] * self._exact + ["signatures"] * self._near + ["qualities"] * self._qualities
        self.names += ["embeddings"] * (self._encoder is not None)
        """File of each column."""

    def of(self, batch: list[Document], num_threads: int) -> dict[str, Any]:
        """Rows of a batch."""
        if not self.names or not batch:
            return {}
        contents = [content_of(document) for document in batch] if self._exact or self._near else []
        columns: dict[str, Any] = {}
        if self._exact:
            columns["hashes"] = exact_hashes(contents, num_threads)
        if self._near:
            columns["signatures"] = minhash_signatures(contents, num_threads=num_threads)
        if self._encoder is not None:
            columns["embeddings"] = embed(self._encoder, [document.plain_text for document in batch])
        if self._qualities:
            columns["qualities"] = np.array([document.quality for document in batch], np.float64)
        return columns


class _Batches:
    """Documents of a part that stay, in batches, and their number."""

    def __init__(self, part: Part, job: IngestJob, rejects: Rejects) -> None:
        self._source = part.source
        self._pieces = part.pieces
        self._rejects = rejects
        self._job = job
        self._limits = Limits(job.config.max_record_bytes, job.config.max_text_bytes)
        self._salt = hashlib.sha256(f"{job.seed}/{part.source.name}".encode()).digest()[:16]
        self.num_documents = 0

    def __iter__(self) -> Iterator[list[Document]]:
        rule = self._source.cleaning
        looks = (
            rule.rules != "none" or bool(rule.languages) or rule.quality != "given" or bool(rule.evaluations)
        )  # the default cleaning, copies alone, looks at no text here
        for found in batches(self._found(), attrgetter("document")):
            if self._source.sample < 1:
                found = [one for one in found if self._is_drawn(one)]
            documents = self._cleaned(found) if looks and found else [one.document for one in found]
            self.num_documents += len(documents)
            yield documents

    def _found(self) -> Iterator[Found]:
        for piece in self._pieces:
            try:
                yield from find_documents(self._source, piece, self._limits, self._job.seed, self._rejects)
            except OSError as error:
                self._rejects.add(piece.name, "offset 0", "unreadable_file", str(error))

    def _is_drawn(self, found: Found) -> bool:
        """Whether a document is in the sample, by its content."""
        draw = hashlib.blake2b(content_of(found.document).encode(), digest_size=8, salt=self._salt).digest()
        if int.from_bytes(draw, "little") < self._source.sample * 2**64:
            return True
        self._rejects.left_out["not_sampled"] = self._rejects.left_out.get("not_sampled", 0) + 1
        return False

    def _cleaned(self, found: list[Found]) -> list[Document]:
        texts = [one.document.plain_text for one in found]
        told = assess(texts, self._source.cleaning, self._job.evaluations, self._limits, self._job.num_threads)
        kept: list[Document] = []
        for i, (one, reason) in enumerate(zip(found, told.reasons, strict=True)):
            if reason is not None:
                self._rejects.leave_out(one.file, one.place, *reason, sample=texts[i])
            elif told.quality is None:
                kept.append(one.document)
            else:
                kept.append(replace(one.document, quality=float(told.quality[i])))
        return kept


def batches(items: Iterable[Item], document_of: Callable[[Item], Document]) -> Iterator[list[Item]]:
    """Documents, or what holds them, in batches of a bounded size."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        text = document_of(item).text
        size += 1_000 if text is None else len(text)
        if len(batch) == DOCUMENTS_PER_BATCH or size >= CHARS_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
