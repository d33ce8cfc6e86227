"""Second pass over a part: the documents that stay, tokenised into one shard for each quality bucket."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import compress, count
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from glmcore._core import shuffled
from glmcore.data.config import HELD_OUT, BucketConfig
from glmcore.data.documents import Document, pick_documents, read_documents
from glmcore.data.encode import encode_documents
from glmcore.data.ingest import batches
from glmcore.data.parts import WorkPlace, read_state
from glmcore.data.shards import ShardWriter
from glmcore.data.verdicts import KEPT, NAMES
from glmcore.durable import fsync, write_file
from glmcore.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenizeJob:
    """A part and where its shards go."""

    name: str
    source: str
    number: int
    """Number of the source, as each document in a shard has it."""
    key: str
    buckets: tuple[BucketConfig, ...]
    with_loss_mask: bool
    tokenizer: str
    """Directory of the tokenizer."""
    vocabulary: str
    """Changes when the tokenizer does."""
    num_threads: int
    place: WorkPlace
    judged: bool
    """Whether the part has verdicts."""
    shuffle_seed: int | None = None
    """Draws the order of the documents; None leaves them as they were read."""
    held_out: float = 0.0
    """Share of the documents that is kept from training."""

    def on_threads(self, num_threads: int) -> "TokenizeJob":
        """The same job, done by so many threads."""
        return replace(self, num_threads=num_threads)


def tokenize(job: TokenizeJob) -> dict[str, Any]:
    """Write the shards of a part; gives the record that is written when all is on disk.

    Raises:
        DataError: The documents are damaged, or the disk is full.
        TokenizerError: The vocabulary lacks a special token.
    """
    place = job.place
    tokenizer = load_tokenizer(job.tokenizer, job.vocabulary)
    labels: list[str | None] = [*([bucket.name for bucket in job.buckets] or [None]), HELD_OUT]
    names = [shard_name(job.name, label) for label in labels]
    bounds = [(bucket.min_quality or 0.0, bucket.min_quantile or 0.0) for bucket in job.buckets]
    best_first = [(bounds[i][0], i) for i in sorted(range(len(bounds)), key=bounds.__getitem__, reverse=True)]
    dropped: Counter[str] = Counter()
    num_bytes = [0] * len(names)
    documents, total = _staying(job, dropped)
    every, position = held_out_distance(total, job.held_out), count()
    with ExitStack() as files:
        writers: list[ShardWriter | None] = [None] * len(names)
        for batch in batches(documents, _itself):
            sorted_in = [_bucket(document, job.buckets, best_first) for document in batch]
            dropped["quality"] += sorted_in.count(None)
            kept = [d for d, bucket in zip(batch, sorted_in, strict=True) if bucket is not None]
            is_out = [every > 0 and next(position) % every == every // 2 for _ in batch]
            buckets = [-1 if out else b for b, out in zip(sorted_in, is_out, strict=True) if b is not None]
            encoded = encode_documents(tokenizer, kept, num_threads=job.num_threads)
            for document, bucket, (ids, loss_mask) in zip(kept, buckets, encoded, strict=True):
                writer = writers[bucket]
                if writer is None:
                    path = _private(place.shards() / names[bucket])
                    writer = files.enter_context(ShardWriter(path, tokenizer.vocab_size, job.with_loss_mask))
                    writers[bucket] = writer
                mask = loss_mask if job.with_loss_mask else None
                writer.append(ids, loss_mask=mask, source=job.number, quality=document.quality)
                num_bytes[bucket] += _size(document)
        told = [(w.num_documents, w.num_tokens) if w else None for w in writers]
    for name, counts in zip(names, told, strict=True):
        if counts is None:
            (place.shards() / name).unlink(missing_ok=True)
        else:
            _private(place.shards() / name).replace(place.shards() / name)
    fsync(place.shards())
    shards = [
        {
            "file": name,
            "bucket": label,
            "documents": counts[0],
            "tokens": counts[1],
            "text_bytes": size,
            "checksum": checksum(place.shards() / name),
        }
        for name, label, counts, size in zip(names, labels, told, num_bytes, strict=True)
        if counts is not None
    ]
    record = {
        "key": job.key,
        "source": job.source,
        "shards": shards,
        "dropped": {k: n for k, n in dropped.items() if n},
    }
    write_file(place.state(job.name, "shards.json"), orjson.dumps(record, option=orjson.OPT_SORT_KEYS))
    return record


def held_out_distance(num_documents: int, share: float) -> int:
    """One document in so many is held out, at least one of two or more; 0 for none."""
    if share == 0 or num_documents < 2:
        return 0
    return round(1 / share) if share * num_documents > 1 else num_documents


def shard_name(part: str, bucket: str | None) -> str:
    """File of a part's documents of one bucket."""
    return f"{part}.tokens" if bucket is None else f"{part}.{bucket}.tokens"


def _private(path: Path) -> Path:
    """A name of this process: a worker that outlives a killed parent for a moment cannot meet its successor."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def checksum(path: Path) -> str:
    """xxh3 of a shard's header, which holds those of all its sections, with the file's size."""
    with path.open("rb") as file:
        file.seek(248)
        return f"{file.read(8).hex()}-{path.stat().st_size}"


def _staying(job: TokenizeJob, dropped: Counter[str]) -> tuple[Iterator[Document], int]:
    """Documents whose verdict is to stay, and their number; the others are counted."""
    path = job.place.documents(job.name)
    if not job.judged:
        return read_documents(path), int((read_state(job.place.state(job.name, "read.json")) or {})["documents"])
    verdicts = np.load(job.place.state(job.name, "verdicts.npy"))
    for verdict, name in enumerate(NAMES[1:], start=1):
        dropped[name] = int((verdicts == verdict).sum())
    if job.shuffle_seed is None:
        return compress(read_documents(path), (verdicts == KEPT).tolist()), int((verdicts == KEPT).sum())
    sizes = np.fromfile(job.place.state(job.name, "sizes"), np.int64)
    ends = np.cumsum(sizes)
    bounds = np.stack([ends - sizes, ends], axis=1)[verdicts == KEPT]
    order = shuffled(len(bounds), job.shuffle_seed, f"documents of {job.name}")
    return pick_documents(path, bounds[order]), len(bounds)


def _size(document: Document) -> int:
    """Bytes of what a document says."""
    text = document.text if document.text is not None else document.plain_text
    return len(text) if text.isascii() else len(text.encode("utf-8", errors="replace"))


def _itself(document: Document) -> Document:
    return document


def _bucket(document: Document, buckets: Sequence[BucketConfig], best_first: Sequence[tuple[float, int]]) -> int | None:
    """Position of the best bucket that takes a document; the buckets are given by least quality and position."""
    if not buckets:
        return 0
    for min_quality, position in best_first:
        if document.quality >= min_quality:
            return position if buckets[position].epochs > 0 else None
    return None


@lru_cache(maxsize=1)
def load_tokenizer(directory: str, vocabulary: str) -> Tokenizer:
    """The tokenizer of a run, read once in each process as long as it is the same."""
    del vocabulary  # only makes another one another entry of the cache
    return Tokenizer.from_pretrained(directory)
