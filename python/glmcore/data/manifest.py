"""The manifest of prepared data: what was read, left out and written, and where each source's shards lie."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmcore.data.config import HELD_OUT
from glmcore.durable import write_file
from glmcore.errors import DataError

FILE = "manifest.json"


@dataclass(frozen=True)
class ShardGroup:
    """Shards that are drawn from together."""

    source: str
    bucket: str | None
    epochs: float
    files: list[Path]
    num_tokens: int


def build(
    sources: Iterable[dict[str, Any]], parts: Iterable[tuple[dict[str, Any] | None, dict[str, Any]]], **about: Any
) -> dict[str, Any]:
    """The manifest of sources and the records of their parts: of reading, where there was some, and of tokenising.

    Args:
        sources: Name, number, kind and buckets (name and epochs) of each.
        parts: Records of all parts, in order.
        about: What else to tell, such as the vocabulary's size.
    """
    told = {source["name"]: {**source, "parts": 0, "shards": []} for source in sources}
    counts = {name: Counter[str]() for name in told}
    rejects = {name: Counter[str]() for name in told}
    dropped = {name: Counter[str]() for name in told}
    for reading, tokenising in parts:
        name = tokenising["source"]
        told[name]["parts"] += 1
        told[name]["shards"] += tokenising["shards"]
        dropped[name].update(tokenising["dropped"])
        for shard in tokenising["shards"]:
            counts[name].update({key: shard[key] for key in ("documents", "tokens", "text_bytes")})
        if reading is not None:
            rejects[name].update(reading["rejects"])
            dropped[name].update(reading["left_out"])
    for name, source in told.items():
        source |= {key: counts[name][key] for key in ("documents", "tokens", "text_bytes")}
        source["rejected"] = dict(sorted(rejects[name].items()))
        source["dropped"] = dict(sorted(dropped[name].items()))
        source["records"] = source["documents"] + rejects[name].total() + dropped[name].total()
    totals = {key: sum(c[key] for c in counts.values()) for key in ("documents", "tokens", "text_bytes")}
    return {"format": 1, **about, **totals, "sources": list(told.values())}


def write(directory: Path, manifest: dict[str, Any]) -> None:
    """Put the manifest beside the shards."""
    write_file(directory / FILE, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def read(directory: Path) -> dict[str, Any]:
    """The manifest of a directory of shards.

    Raises:
        DataError: There is none, or it is damaged.
    """
    path = directory / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{directory} holds no {FILE}: `glmcore data prepare` writes one when all is done") from None
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}") from None


def groups(directory: Path, manifest: dict[str, Any], source: str) -> list[ShardGroup]:
    """The shards of a source by bucket; what is held out is one more, of 0 epochs.

    Raises:
        DataError: There is no such source.
    """
    found = [entry for entry in manifest["sources"] if entry["name"] == source]
    if not found:
        known = ", ".join(entry["name"] for entry in manifest["sources"])
        raise DataError(f"{directory} holds no source {source!r}, but {known}")
    epochs: dict[str | None, float] = {bucket["name"]: bucket["epochs"] for bucket in found[0]["buckets"]} or {
        None: 1.0
    }
    epochs[HELD_OUT] = 0.0
    result: list[ShardGroup] = []
    for bucket, times in epochs.items():
        shards = [shard for shard in found[0]["shards"] if shard["bucket"] == bucket]
        files = [directory / shard["file"] for shard in shards]
        if files:
            result.append(ShardGroup(source, bucket, times, files, sum(shard["tokens"] for shard in shards)))
    return result
