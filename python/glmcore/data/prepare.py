"""From raw text to token shards: the data stations of a run."""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from glmcore.data.corpus.collect import collect
from glmcore.data.documents import read_documents, write_documents
from glmcore.data.encode import encode_documents
from glmcore.data.shards import ShardWriter
from glmcore.durable import atomic_directory
from glmcore.errors import DataError
from glmcore.progress import progress, say
from glmcore.recipe import Recipe
from glmcore.rundir import RunDirectory, open_run, timed
from glmcore.tokenizer import Tokenizer, train_tokenizer

DOCUMENTS_PER_BATCH = 512


def run(recipe: Recipe) -> None:
    """Collect the corpus, train the tokenizer and write the shards of `recipe`; finished stations are not repeated.

    Raises:
        RunError: The run directory is in use or belongs to another recipe.
        DataError: The corpus cannot be read.
        TokenizerError: There is too little text for the vocabulary.
    """
    with open_run(recipe) as directory:
        prepare(directory)


def prepare(run: RunDirectory) -> None:
    """The data stations of an open run; see `run`."""
    if not run.station_done("corpus"):
        with timed(run, "corpus") as details:
            details["note"] = write_corpus(run)
    if not run.station_done("tokenizer"):
        with timed(run, "tokenizer") as details:
            details["note"] = write_tokenizer(run)
    if not run.station_done("shards"):
        with timed(run, "shards") as details:
            details["tokens"] = write_shards(run)


def write_corpus(run: RunDirectory) -> str:
    """Write each source's documents; gives a note for people."""
    recipe = run.recipe
    sources = collect(recipe.corpus, recipe.run.seed)
    shutil.rmtree(run.corpus, ignore_errors=True)
    size = 0
    with atomic_directory(run.corpus) as temporary, progress("corpus", unit="sources") as bar:
        for name, documents in sources.items():
            stats = write_documents(temporary / f"{name}.jsonl", documents)
            say(f"  {name:<12} {stats.num_documents:>7,} documents  {stats.num_bytes / 1e6:6.2f} MB")
            if not stats.num_documents:
                raise DataError(f"source {name!r} is empty")
            size += stats.num_bytes
            bar.advance(1)
    return f"{size / 1e6:.1f} MB"


def write_tokenizer(run: RunDirectory) -> str:
    """Train and write the tokenizer; gives a note for people."""
    config = run.recipe.tokenizer
    files = _corpus_files(run)
    share = config.training_bytes // len(files)
    texts = (text for file in files for text in _head(file, share))
    tokenizer = train_tokenizer(texts, config.vocab_size, num_threads=run.recipe.run.num_threads)
    shutil.rmtree(run.tokenizer, ignore_errors=True)
    with atomic_directory(run.tokenizer) as temporary:
        tokenizer.save(temporary)
    return f"{tokenizer.vocab_size:,} ids"


def _head(file: Path, max_chars: int) -> Iterator[str]:
    """Texts from the start of a corpus file, up to about `max_chars`."""
    size = 0
    for document in read_documents(file):
        if size >= max_chars:
            return
        text = document.plain_text
        size += len(text)
        yield text


def write_shards(run: RunDirectory) -> int:
    """Tokenize every source into a shard; gives the number of tokens."""
    tokenizer = Tokenizer.from_pretrained(run.tokenizer)
    run.shards.mkdir(exist_ok=True)
    total = 0
    with progress("tokenize", unit="tokens") as bar:
        for file in _corpus_files(run):
            with ShardWriter(run.shards / f"{file.stem}.tokens", tokenizer.vocab_size, with_loss_mask=True) as writer:
                documents = read_documents(file)
                while batch := list(islice(documents, DOCUMENTS_PER_BATCH)):
                    encoded = encode_documents(tokenizer, batch, num_threads=run.recipe.run.num_threads)
                    for document, (ids, loss_mask) in zip(batch, encoded, strict=True):
                        writer.append(ids, loss_mask=loss_mask, quality=document.quality)
                    count = sum(len(ids) for ids, _ in encoded)
                    total += count
                    bar.advance(count)
    return total


def _corpus_files(run: RunDirectory) -> list[Path]:
    return sorted(run.corpus.glob("*.jsonl"))
