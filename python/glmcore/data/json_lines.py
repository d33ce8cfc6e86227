"""JSON lines straight to token files: one text a line, nothing between but the tokenizer.

Cleaning, mixtures and conversations are the work of `glmcore.data.prepare`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glmcore._core import CoreJsonLines
from glmcore.data.megatron import MegatronWriter
from glmcore.data.shards import PathLike, ShardWriter
from glmcore.errors import TokenizerError
from glmcore.ragged import Ragged
from glmcore.tokenizer import END_OF_TEXT, Tokenizer

STEP_BYTES = 2 << 20
"""Of the file that each thread takes at a time."""


@dataclass(frozen=True)
class Tokenized:
    """What was written."""

    num_documents: int
    num_tokens: int
    """The ends of the documents included."""


def tokenize_json_lines(
    files: Sequence[PathLike],
    writer: ShardWriter | MegatronWriter,
    tokenizer: Tokenizer,
    *,
    field: str = "text",
    num_threads: int | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Tokenized:
    """Add the text of every line to a token file, each a document that ends with `<|endoftext|>`.

    Special tokens in a text stay text. What is written does not depend on the number of threads.

    Args:
        files: JSON objects, one a line; blank lines hold nothing. They must not change meanwhile.
        writer: Of a vocabulary that the tokenizer's ids fit.
        tokenizer: Any that has `<|endoftext|>`.
        field: Key of the text in each object; of equal keys the last counts.
        num_threads: None for all cores.
        on_bytes: Called with the bytes of the files that were done.

    Raises:
        DataError: A file cannot be read, a line is no object with a string under `field` (file and line are named), or
            the disk is full.
        TokenizerError: The vocabulary has no `<|endoftext|>`.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise TokenizerError(f"the vocabulary has no {END_OF_TEXT}, which ends a document")
    threads = num_threads or os.cpu_count() or 1
    documents = tokens = 0
    for path in files:
        lines = CoreJsonLines(os.fspath(path), field)
        start = 0
        while start < lines.num_bytes:
            ids, offsets, stop = lines.encode(tokenizer.core, start, threads * STEP_BYTES, threads)
            batch = Ragged(ids, offsets)
            writer.append_batch(batch, end)
            documents += len(batch)
            tokens += len(ids) + len(batch)
            on_bytes(stop - start)
            start = stop
    return Tokenized(documents, tokens)
