"""Prepared data looked at: single documents, whole sources, checksums."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glmcore.data import manifest
from glmcore.data.shards import TokenShards
from glmcore.data.tokenize import checksum
from glmcore.errors import DataError
from glmcore.tokenizer import Tokenizer

QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Shown:
    """A document as it lies in a shard."""

    file: str
    document: int
    """Its position in the file."""
    source: str
    bucket: str | None
    quality: float
    num_tokens: int
    num_learned: int
    """Tokens that are learned."""
    segments: list[tuple[bool, str]]
    """Text of neighbouring tokens that are all learned, or all not; special tokens are spelled out."""


@dataclass(frozen=True)
class Prepared:
    """Shards of a run, of a directory, or a single one."""

    directory: Path
    told: dict[str, Any] | None
    """The manifest; None for a single shard."""
    groups: list[manifest.ShardGroup]

    @classmethod
    def open(cls, path: Path) -> "Prepared":
        """Find shards.

        Args:
            path: A run directory, its directory of shards, or a `.tokens` file.

        Raises:
            DataError: There are none.
        """
        if path.is_file():
            told = manifest.read(path.parent) if (path.parent / manifest.FILE).exists() else None
            known = [(s["name"], shard["bucket"]) for s in (told or {"sources": []})["sources"] for shard in s["shards"]
                     if shard["file"] == path.name]  # fmt: skip
            name, bucket = known[0] if known else (path.stem, None)
            group = manifest.ShardGroup(name, bucket, 1.0, [path], TokenShards.open(path).num_tokens)
            return cls(path.parent, None, [group])
        directory = path / "shards" if (path / "shards").is_dir() else path
        if not directory.is_dir():
            raise DataError(f"{path} does not exist")
        told = manifest.read(directory)
        groups = [g for source in told["sources"] for g in manifest.groups(directory, told, source["name"])]
        return cls(directory, told, groups)

    def of_source(self, name: str | None) -> "Prepared":
        """The shards of one source, or all for None.

        Raises:
            DataError: There is no such source.
        """
        chosen = [group for group in self.groups if name in (None, group.source)]
        if not chosen:
            known = ", ".join(dict.fromkeys(group.source for group in self.groups))
            raise DataError(f"{self.directory} holds no source {name!r}, but {known}")
        return Prepared(self.directory, self.told, chosen)

    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer.

        Raises:
            DataError: It does not lie beside the shards.
        """
        for folder in (self.directory.parent / "tokenizer", self.directory / "tokenizer"):
            if (folder / "tokenizer.json").exists():
                return Tokenizer.from_pretrained(folder)
        raise DataError(f"no tokenizer beside {self.directory}: name it with --tokenizer")

    def verify(self) -> int:
        """Read every byte and compare it with the checksums of shards and manifest; gives the number of shards.

        Raises:
            DataError: A shard is damaged, missing, or another than the manifest tells of.
        """
        told = {shard["file"]: shard["checksum"] for source in (self.told or {"sources": []})["sources"]
                for shard in source["shards"]}  # fmt: skip
        files = [file for group in self.groups for file in group.files]
        for file in files:
            TokenShards.open(file).verify()
            if file.name in told and checksum(file) != told[file.name]:
                raise DataError(f"{file}: whole, but not the shard that {manifest.FILE} tells of")
        return len(files)

    def show(self, count: int, tokenizer: Tokenizer) -> Iterator[Shown]:
        """Documents spread evenly over each source, at most `count` of each bucket."""
        for group in self.groups:
            shards = [TokenShards.open(file) for file in group.files]
            ends = np.cumsum([len(shard) for shard in shards])
            total = int(ends[-1])
            shown = min(count, total)
            for number in (k * total // shown for k in range(shown)):
                which = int(np.searchsorted(ends, number, side="right"))
                place = number - int(ends[which]) + len(shards[which])
                yield _shown(group, group.files[which], shards[which], place, tokenizer)

    def statistics(self) -> dict[str, Any]:
        """The manifest with quantiles of the documents' lengths, in tokens, of each source, and tokens per byte."""
        told: dict[str, Any] = dict(self.told or {"sources": []})
        sources: list[dict[str, Any]] = []
        for source in told["sources"]:
            own = [group for group in self.groups if group.source == source["name"]]
            if not own:
                continue
            lengths = [TokenShards.open(group.files).lengths for group in own]
            buckets = [
                {"bucket": group.bucket, "epochs": group.epochs, "documents": len(length), "tokens": group.num_tokens}
                for group, length in zip(own, lengths, strict=True)
            ]
            sources.append(
                {key: value for key, value in source.items() if key != "shards"}
                | {"buckets": buckets, "lengths": _quantiles(np.concatenate(lengths))}
                | {"tokens_per_byte": source["tokens"] / max(source["text_bytes"], 1)}
            )
        return {**told, "sources": sources}


def _shown(group: manifest.ShardGroup, file: Path, shards: TokenShards, document: int, tokenizer: Tokenizer) -> Shown:
    ids = shards[document].astype(np.int32)
    mask = shards.loss_mask(document).astype(np.bool_)
    cuts = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist(), len(ids)]
    segments = [
        (bool(mask[start]), tokenizer.decode(ids[start:stop])) for start, stop in pairwise(cuts) if stop > start
    ]
    quality = shards.quality(document)
    return Shown(file.name, document, group.source, group.bucket, quality, len(ids), int(mask.sum()), segments)


def _quantiles(lengths: npt.NDArray[np.uint32]) -> dict[str, float]:
    values = np.quantile(lengths, QUANTILES, method="nearest").tolist()
    told = {f"p{round(100 * q)}": int(value) for q, value in zip(QUANTILES, values, strict=True)}
    return {**told, "mean": float(lengths.mean())}
