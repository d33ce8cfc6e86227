"""From raw text to token shards: the data stations of a run.

Three steps, each of which leaves its results on disk under a key of what they follow from, so that a killed call is
gone on with: every part of every source is read; which documents stay is decided over all of them; every part is
tokenised. The built-in corpus is one part for each of its sources.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from glmcore.data import manifest
from glmcore.data.config import BUILT_IN, BucketConfig, DataConfig, SourceConfig
from glmcore.data.corpus.collect import collect
from glmcore.data.documents import read_documents, write_documents
from glmcore.data.encoder import source_file
from glmcore.data.engines import Engine, Workers
from glmcore.data.ingest import IngestJob, ingest
from glmcore.data.parts import (
    Part,
    WorkPlace,
    digest,
    digest_of_file,
    evaluation_pieces,
    plan_parts,
    read_state,
    reading_key,
)
from glmcore.data.readers.record import Piece
from glmcore.data.tokenize import TokenizeJob, checksum, load_tokenizer, tokenize
from glmcore.data.verdicts import buckets_by_source, decide
from glmcore.data.vocabulary import vocabulary_text
from glmcore.durable import write_file
from glmcore.errors import DataError, RunError
from glmcore.progress import progress, say
from glmcore.recipe import DataRecipe
from glmcore.rundir import RunDirectory, open_run, timed
from glmcore.tokenizer import Tokenizer, train_tokenizer

STATIONS = ("corpus", "tokenizer", "shards")
Run = RunDirectory[DataRecipe]
Buckets = Mapping[str, tuple[BucketConfig, ...]]
"""Buckets of each own source."""
_REJECTS = (("rejects", "rejected"), ("left_out", "left out"))


def run(recipe: DataRecipe, *, engine: Engine = "local", recheck: bool = False) -> None:
    """Read the sources of `recipe`, make the tokenizer and write the shards; what is finished is not repeated.

    Args:
        recipe: What to prepare.
        engine: `local` takes this machine's cores, `ray` a Ray cluster; the shards are the same.
        recheck: Look at the sources again even when all is done, and read anew those parts whose files have changed.
            Sources may be added, changed and left out as long as nothing has been trained on them.

    Raises:
        RunError: The run directory is in use or belongs to another recipe, or a worker was killed.
        DataError: A source cannot be read or is empty, or a bad record is to stop the work.
        TokenizerError: There is too little text for the vocabulary.
    """
    with open_run(recipe, renewable=STATIONS if recheck else ()) as directory:
        prepare(directory, engine=engine, recheck=recheck)


def prepare(run: RunDirectory[DataRecipe], *, engine: Engine = "local", recheck: bool = False) -> None:
    """The data stations of an open run; see `run`."""
    if run.station_done("shards") and not recheck:
        return
    plan = Plan.of(run)
    changed = plan.changed()
    if run.station_done("corpus") and (plan.unread() or plan.strangers()):
        _begin_anew(run, changed)
    for file in changed:
        say(f"{file} has changed since it was read: its part is read again")
    plan.clean()
    if run.station_done("shards"):
        say(f"{run.path}: all is prepared, and no source has changed")
        return
    with Workers(run.recipe.run.num_threads, engine) as workers:
        if not run.station_done("corpus"):
            with timed(run, "corpus") as details:
                details["note"] = read_sources(run, plan, workers)
        if not run.station_done("tokenizer"):
            with timed(run, "tokenizer") as details:
                details["note"] = write_tokenizer(run, plan)
        with timed(run, "shards") as details:
            details["tokens"] = write_shards(run, plan, workers)


@dataclass(frozen=True)
class Plan:
    """The parts of a run."""

    place: WorkPlace
    built_in: list[str]
    """Names of the built-in corpus's sources, each one part."""
    built_in_key: str
    parts: list[Part]
    keys: list[str]
    """What each part's documents follow from."""
    evaluations: dict[str, tuple[Piece, ...]]
    """Files of evaluation texts of each source."""

    @classmethod
    def of(cls, run: Run) -> "Plan":
        """Find the sources of a run.

        Raises:
            DataError: A source's path leads to nothing.
        """
        recipe = run.recipe
        corpus, config, seed = recipe.corpus, recipe.own_data, recipe.run.seed
        parts = [] if config is None else plan_parts(config)
        evaluations = {s.name: evaluation_pieces(s) for s in config.sources} if config else {}
        keys = [] if config is None else _keys(parts, config, seed, evaluations)
        names: list[str] = [] if corpus is None else [*BUILT_IN]
        without_user = None if corpus is None else corpus.model_copy(update={"path": None})
        corpus_key = "" if without_user is None else digest([without_user.model_dump(exclude={"user_weight"}), seed])
        return cls(WorkPlace(str(run.path)), names, corpus_key, parts, keys, evaluations)

    def unread(self) -> list[int]:
        """Positions of parts that are not read, or whose files or settings have changed since."""
        return [
            i for i, (part, key) in enumerate(zip(self.parts, self.keys, strict=True)) if not self._is_read(part, key)
        ]

    def _is_read(self, part: Part, key: str) -> bool:
        record = read_state(self.place.state(part.name, "read.json"))
        return record is not None and record["key"] == key

    def strangers(self) -> set[str]:
        """Names of parts that have been read and are no longer planned."""
        read = (Path(self.place.run) / "parts").glob("*.read.json")
        return {file.name.split(".")[0] for file in read} - self._names()

    def changed(self) -> list[str]:
        """Files that were read and have other content now."""
        stamps: dict[str, str] = {}
        for file in (Path(self.place.run) / "parts").glob("*.read.json"):
            stamps |= {url: stamp for url, *_, stamp in orjson.loads(file.read_bytes()).get("pieces", ())}
        pieces = [piece for part in self.parts for piece in part.pieces]
        return sorted({piece.name for piece in pieces if stamps.get(piece.url, piece.stamp) != piece.stamp})

    def _names(self) -> set[str]:
        return {*self.built_in, *(part.name for part in self.parts)}

    def read_records(self) -> list[dict[str, Any]]:
        """The record of each part, all being read."""
        return [orjson.loads(self.place.state(part.name, "read.json").read_bytes()) for part in self.parts]

    def clean(self) -> None:
        """Remove what a killed call left half-written, and what belongs to no part."""
        kept = {"manifest"} | self._names()
        for folder in ("corpus", "parts", "rejects", "shards"):
            for file in (Path(self.place.run) / folder).glob("*"):
                if file.name.startswith(".") or file.name.split(".")[0] not in kept:
                    file.unlink()


def _keys(parts: list[Part], config: DataConfig, seed: int, evaluations: dict[str, tuple[Piece, ...]]) -> list[str]:
    """The reading key of each part."""
    others = {name: [piece.stamp for piece in pieces] for name, pieces in evaluations.items()}
    for source in config.sources:
        if source.cleaning.classifier is not None:
            others[source.name].append(digest_of_file(source.cleaning.classifier))
        if source.cleaning.semantic_duplicates is not None:
            others[source.name].append(digest_of_file(source_file(source.cleaning.semantic_duplicates.encoder)))
    return [reading_key(part, config, seed, others[part.source.name]) for part in parts]


def _begin_anew(run: Run, changed: list[str]) -> None:
    """Take the data stations as not done, since a source has changed; finished parts stay.

    Raises:
        RunError: Something has been made of the data already.
    """
    later = [station["name"] for station in run.stations()["stations"] if station["name"] not in STATIONS]
    if later or run.checkpoints.exists():
        what = changed[0] if changed else "the files of a source"
        raise RunError(f"{what} changed since {run.path} was trained on it: choose another run.dir=PATH")
    run.forget_stations(STATIONS)


def read_sources(run: Run, plan: Plan, workers: Workers) -> str:
    """Write the documents of every part; gives a note for people.

    Raises:
        DataError: A source is empty.
    """
    size = 0 if run.recipe.own_data is None else _read_own(run, run.recipe.own_data, plan, workers)
    size += _write_built_in(run, plan)
    return f"{size / 1e6:.1f} MB"


def _read_own(run: Run, config: DataConfig, plan: Plan, workers: Workers) -> int:
    """Read those parts that are not read; gives the bytes of all their documents."""
    for folder in ("corpus", "parts", "rejects"):
        (run.path / folder).mkdir(exist_ok=True)
    todo = plan.unread()
    sizes = [plan.parts[i].size for i in todo]
    threads = max(1, run.recipe.run.num_threads // workers.number(len(todo), sum(sizes)))
    seed = run.recipe.run.seed
    jobs = [
        IngestJob(
            plan.parts[i], plan.keys[i], config, seed, plan.place, plan.evaluations[plan.parts[i].source.name], threads
        )
        for i in todo
    ]
    with progress("read", total=sum(part.size for part in plan.parts), unit="bytes") as bar:
        bar.skip(bar.total - sum(sizes) if bar.total else 0)
        workers.run(ingest, jobs, lambda i, _: bar.advance(sizes[i]), num_bytes=sum(sizes))
    records = plan.read_records()
    size = 0
    for source in config.sources:
        own = [r for part, r in zip(plan.parts, records, strict=True) if part.source.name == source.name]
        _tell(run, source, own)
        size += sum(record["bytes"] for record in own)
    return size


def _tell(run: Run, source: SourceConfig, records: Sequence[dict[str, Any]]) -> None:
    documents, num_bytes = (sum(record[key] for record in records) for key in ("documents", "bytes"))
    counts = [(sum(sum(r[key].values()) for r in records), word) for key, word in _REJECTS]
    gone = ", ".join(f"{count:,} {word}" for count, word in counts if count)
    told = f"{gone}: see {run.path / 'rejects'}" if gone else ""
    say(f"  {source.name:<12} {documents:>7,} documents  {num_bytes / 1e6:6.2f} MB  {told}".rstrip())
    if not documents:
        paths = ", ".join(source.paths[:3]) + ", ..." * (len(source.paths) > 3)
        of = f" ({paths})" * bool(paths)
        raise DataError(f"source {source.name!r} is empty{of}{'; ' * bool(told)}{told}")


def _write_built_in(run: Run, plan: Plan) -> int:
    """Write the documents of the built-in corpus; gives their bytes."""
    config = run.recipe.corpus
    records = {name: read_state(plan.place.state(name, "read.json")) for name in plan.built_in}
    missing = [name for name, record in records.items() if record is None or record["key"] != plan.built_in_key]
    if config is None or not missing:
        return sum(record["bytes"] for record in records.values() if record)
    sources = collect(config, run.recipe.run.seed)
    run.corpus.mkdir(exist_ok=True)
    (run.path / "parts").mkdir(exist_ok=True)
    size = 0
    with progress("corpus", unit="sources") as bar:
        for name, documents in sources.items():
            stats = write_documents(plan.place.documents(name), documents)
            say(f"  {name:<12} {stats.num_documents:>7,} documents  {stats.num_bytes / 1e6:6.2f} MB")
            if not stats.num_documents:
                raise DataError(f"source {name!r} is empty")
            record = {"key": plan.built_in_key, "documents": stats.num_documents, "bytes": stats.num_bytes}
            write_file(plan.place.state(name, "read.json"), orjson.dumps(record))
            size += stats.num_bytes
            bar.advance(1)
    return size


def write_tokenizer(run: Run, plan: Plan) -> str:
    """Write the tokenizer, trained or taken; gives a note for people.

    Raises:
        TokenizerError: There is too little text, or the file to be taken cannot be read.
    """
    config = run.recipe.tokenizer
    if config.path is not None:
        tokenizer = Tokenizer.open(config.path)
    else:
        names = sorted({*plan.built_in, *(part.source.name for part in plan.parts)})
        _judge(run, plan)
        share = config.training_bytes // len(names)
        texts = chain.from_iterable(_head(plan, name, share) for name in names)
        tokenizer = train_tokenizer(texts, config.vocab_size, num_threads=run.recipe.run.num_threads)
    tokenizer.save(run.tokenizer)
    return f"{tokenizer.vocab_size:,} ids"


def _judge(run: Run, plan: Plan) -> list[str]:
    """Decide which documents stay; gives a key for each part."""
    return decide(plan.parts, plan.read_records(), plan.place, run.recipe.run.num_threads)


def _head(plan: Plan, source: str, max_chars: int) -> Iterator[str]:
    """Texts from the start of a source, up to about `max_chars`."""
    size = 0
    names = [part.name for part in plan.parts if part.source.name == source] or [source]
    for name in names:
        documents = read_documents(plan.place.documents(name))
        if source not in plan.built_in:
            documents = compress(documents, (np.load(plan.place.state(name, "verdicts.npy")) == 0).tolist())
        for document in documents:
            if size >= max_chars:
                return
            text = vocabulary_text(document)
            size += len(text)
            yield text


def write_shards(run: Run, plan: Plan, workers: Workers) -> int:
    """Tokenise every part and write the manifest; gives the number of tokens.

    Raises:
        DataError: Nothing of a source is left.
    """
    run.shards.mkdir(exist_ok=True)
    verdict_keys = _judge(run, plan)
    buckets = buckets_by_source(plan.parts, plan.place)
    jobs, sizes = _tokenize_jobs(run, plan, verdict_keys, buckets)
    todo = [i for i, job in enumerate(jobs) if _shards_record(job) is None]
    total = sum(sizes[i] for i in todo)
    threads = max(1, run.recipe.run.num_threads // workers.number(len(todo), total))
    with progress("tokenize", total=sum(sizes), unit="bytes") as bar:
        bar.skip(sum(sizes) - total)
        chosen = [jobs[i].on_threads(threads) for i in todo]
        workers.run(tokenize, chosen, lambda i, _: bar.advance(sizes[todo[i]]), num_bytes=total)
    records = [record for job in jobs if (record := _shards_record(job))]
    built = manifest.build(_source_heads(run, plan, buckets), zip(_readings(plan), records, strict=True), **_about(run))
    for source in built["sources"]:
        if not source["documents"]:
            raise DataError(f"nothing of source {source['name']!r} is left: {source['dropped']} dropped")
    manifest.write(run.shards, built)
    return built["tokens"]


def _tokenize_jobs(
    run: Run, plan: Plan, verdict_keys: Sequence[str], buckets_of: Buckets
) -> tuple[list[TokenizeJob], list[int]]:
    """A job for each part, and its bytes of text."""
    vocabulary, held_out = _vocabulary(run), run.recipe.held_out.share
    numbers = dict.fromkeys(plan.built_in, 0)
    numbers |= {source.name: i for i, source in enumerate(_own_sources(run), start=1)}

    def job(part: Part | None, name: str, source: str, key: str) -> TokenizeJob:
        buckets = buckets_of.get(source, ())
        shuffle_seed = run.recipe.run.seed if part is not None and part.source.shuffle else None
        return TokenizeJob(
            name=name,
            source=source,
            number=numbers[source],
            key=digest([key, vocabulary, numbers[source], [b.model_dump() for b in buckets], shuffle_seed, held_out]),
            buckets=buckets,
            with_loss_mask=part is None or part.source.kind in ("conversations", "mixed", "problems"),
            tokenizer=str(run.tokenizer),
            vocabulary=vocabulary,
            num_threads=1,
            place=plan.place,
            judged=part is not None,
            shuffle_seed=shuffle_seed,
            held_out=held_out,
        )

    jobs = [job(None, name, name, plan.built_in_key) for name in plan.built_in]
    for part, read_key, verdict_key in zip(plan.parts, plan.keys, verdict_keys, strict=True):
        jobs.append(job(part, part.name, part.source.name, read_key + verdict_key))
    sizes = [int((read_state(plan.place.state(job.name, "read.json")) or {})["bytes"]) for job in jobs]
    return jobs, sizes


def _shards_record(job: TokenizeJob) -> dict[str, Any] | None:
    """The record of a part's shards, if they are there and are what is asked for."""
    record = read_state(job.place.state(job.name, "shards.json"))
    if record is None or record["key"] != job.key:
        return None
    files = [(job.place.shards() / shard["file"], shard["checksum"]) for shard in record["shards"]]
    return record if all(file.exists() and checksum(file) == told for file, told in files) else None


def _own_sources(run: Run) -> list[SourceConfig]:
    own = run.recipe.own_data
    return own.sources if own else []


def _readings(plan: Plan) -> list[dict[str, Any] | None]:
    return [*([None] * len(plan.built_in)), *plan.read_records()]


def _source_heads(run: Run, plan: Plan, buckets_of: Buckets) -> list[dict[str, Any]]:
    """What the recipe says of each source."""
    heads: list[dict[str, Any]] = [
        {"name": name, "number": 0, "kind": "built-in", "buckets": []} for name in plan.built_in
    ]
    for number, source in enumerate(_own_sources(run), start=1):
        buckets = [{"name": b.name, "epochs": b.epochs, "min_quality": b.min_quality} for b in buckets_of[source.name]]
        heads.append({"name": source.name, "number": number, "kind": source.kind, "buckets": buckets})
    return heads


def _about(run: Run) -> dict[str, Any]:
    tokenizer = load_tokenizer(str(run.tokenizer), _vocabulary(run))
    return {"vocab_size": tokenizer.vocab_size, "seed": run.recipe.run.seed}


def _vocabulary(run: Run) -> str:
    """A name for what the tokenizer is."""
    return sha256((run.tokenizer / "tokenizer.json").read_bytes()).hexdigest()
