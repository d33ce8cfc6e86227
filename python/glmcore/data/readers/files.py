"""Which files a source has, and how each is cut into pieces."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from glmcore.data.builders.git import resolve
from glmcore.data.config import SourceConfig
from glmcore.data.readers.git import size_of
from glmcore.data.readers.record import Piece
from glmcore.data.readers.streams import import_pyarrow, open_url
from glmcore.errors import DataError

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".md": "markdown",
    ".markdown": "markdown",
}
_TEXT = (".c .cc .cfg .cpp .css .go .h .hpp .html .ini .java .js .json .jsx .lua .pl .py .pyi .rb .rs .rst .scala .sh "
         ".sql .swift .tex .toml .ts .tsx .txt .xml .yaml .yml")  # fmt: skip
_SUFFIXES |= dict.fromkeys(_TEXT.split(), "text")
BYTES_PER_PROBLEM = 300
"""What a drawn problem counts as, in bytes."""
_COMPRESSED = (".gz", ".zst")


def list_pieces(source: SourceConfig, part_bytes: int) -> list[Piece]:
    """All pieces of a source, in the order of `paths` and then of the files' names.

    Raises:
        DataError: A path leads to nothing, or a file's format cannot be told.
    """
    tasks = source.problems.tasks if source.kind == "problems" else {}
    pieces = [
        Piece(task, f"reasoning-gym/{task}", "task", 0, count, count * BYTES_PER_PROBLEM, "")
        for task, count in tasks.items()
    ]
    for path in source.paths:
        if source.kind == "repositories" or source.format == "git":
            found = [_repository(source, directory) for directory in _directories(path)]
        else:
            found = _files(source, path, part_bytes)
        if not found:
            raise DataError(f"source {source.name!r}: {path} holds nothing to read: check the path, or name the format")
        pieces += found
    return pieces


def _directories(path: str) -> list[str]:
    """Directories that a path or pattern leads to."""
    found = sorted(fsspec.filesystem("file").glob(path)) if any(sign in path for sign in "*?[") else [path]
    return [directory for directory in found if Path(directory).is_dir()]


def _repository(source: SourceConfig, path: str) -> Piece:
    """A git repository at a commit, or any directory."""
    directory = Path(path).absolute()
    is_git = (directory / ".git").exists() or ((directory / "HEAD").is_file() and (directory / "objects").is_dir())
    if is_git or source.format == "git":
        commit = resolve(directory, source.revision)
        return Piece(str(directory), path, "git", 0, -1, size_of(directory, commit), commit)
    files = sorted(file for file in directory.rglob("*") if file.is_file() and not file.is_symlink())
    told = [(str(file.relative_to(directory)), *_describe_local(file)) for file in files]
    stamp = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    return Piece(str(directory), path, "directory", 0, -1, sum(size for _, size, _ in told), stamp)


def _files(source: SourceConfig, path: str, part_bytes: int) -> list[Piece]:
    try:
        filesystem, root = fsspec.url_to_fs(path)
        named, found = _find(filesystem, root, source)
        pieces: list[Piece] = []
        for file in found:
            kind = format_of(file) if source.format == "auto" else source.format
            if kind is None and not named:
                continue  # a directory may hold anything
            if kind is None and source.kind == "mixed":
                kind = "text"
            if kind is None:
                raise DataError(f"source {source.name!r}: cannot tell the format of {file}: name it with `format`")
            pieces += _cut(source, filesystem, root, path, file, kind, part_bytes)
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"source {source.name!r}: cannot read {path}: {error}") from None
    return pieces


def format_of(file: str) -> str | None:
    """Format of a file by the end of its name."""
    name = file.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    kind = _SUFFIXES.get(Path(name).suffix)
    return None if kind in ("parquet", "arrow") and name != file.lower() else kind


def _find(filesystem: Any, root: str, source: SourceConfig) -> tuple[bool, list[str]]:
    """Whether the files were named, and the files."""
    if filesystem.isdir(root):
        dataset = _dataset_files(filesystem, root, source)
        if dataset is not None:
            return True, dataset
        below = len(root.rstrip("/")) + 1
        found = sorted(filesystem.find(root))
        return False, [f for f in found if not any(part.startswith(".") for part in f[below:].split("/"))]
    if filesystem.isfile(root):
        return True, [root]
    found = sorted(filesystem.glob(root)) if any(sign in root for sign in "*?[") else []
    return True, [file for file in found if filesystem.isfile(file)]


def _dataset_files(filesystem: Any, root: str, source: SourceConfig) -> list[str] | None:
    """Files of a Hugging Face dataset, as `save_to_disk` or the cache of `load_dataset` leaves it; else None."""
    root = root.rstrip("/")
    if filesystem.isfile(f"{root}/dataset_dict.json"):
        splits = json.loads(filesystem.cat_file(f"{root}/dataset_dict.json"))["splits"]
        return _dataset_files(filesystem, f"{root}/{_split(source, splits)}", source)
    if filesystem.isfile(f"{root}/state.json"):
        state = json.loads(filesystem.cat_file(f"{root}/state.json"))
        return [f"{root}/{file['filename']}" for file in state["_data_files"]]
    if not filesystem.isfile(f"{root}/dataset_info.json"):
        return None
    splits = json.loads(filesystem.cat_file(f"{root}/dataset_info.json")).get("splits") or {}
    split = _split(source, list(splits))
    files = sorted(file for file in filesystem.find(root) if file.endswith((".arrow", ".parquet")))
    return [file for file in files if f"-{split}" in Path(file).name] if splits else files


def _split(source: SourceConfig, splits: list[str]) -> str:
    if source.split is None and len(splits) <= 1:
        return splits[0] if splits else ""
    if source.split not in splits:
        raise DataError(
            f"source {source.name!r}: the dataset has the splits {', '.join(splits)}: choose one with `split`"
        )
    return source.split


def _cut(
    source: SourceConfig, filesystem: Any, root: str, path: str, file: str, kind: str, part_bytes: int
) -> Iterator[Piece]:
    """Pieces of a file: byte ranges of plain lines, row groups of Parquet, else the whole."""
    url = filesystem.unstrip_protocol(file)
    name = path if file == root else file if "://" not in path else url
    size, stamp = _describe(filesystem, file)
    session = source.kind == "conversations" and source.layout == "claude-code"
    whole = session or source.kind == "discussions"  # what belongs together is one file
    if kind in ("jsonl", "lines") and not file.endswith(_COMPRESSED) and not whole:
        for start in range(0, max(size, 1), part_bytes):
            stop = start + part_bytes if start + part_bytes < size else -1
            yield Piece(url, name, kind, start, stop, min(part_bytes, size - start), stamp)
    elif kind == "parquet" and not whole:
        yield from _row_groups(Piece(url, name, kind, 0, -1, size, stamp), part_bytes)
    else:
        yield Piece(url, name, kind, 0, -1, size, stamp)


def _row_groups(whole: Piece, part_bytes: int) -> Iterator[Piece]:
    """Stretches of row groups of about `part_bytes`; a file that cannot be opened is left to its reader to reject."""
    pa = import_pyarrow("Parquet files")
    try:
        with open_url(whole.url) as file:
            metadata = pa.parquet.read_metadata(file)
            sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
    except (OSError, pa.ArrowException):
        sizes = []
    if sum(sizes) <= part_bytes:
        yield whole
        return
    start = size = 0
    for number, bytes_of_group in enumerate(sizes):
        if size and size + bytes_of_group > part_bytes:
            yield whole._replace(start=start, stop=number, size=size)
            start, size = number, 0
        size += bytes_of_group
    yield whole._replace(start=start, stop=len(sizes), size=size)


def _describe(filesystem: Any, file: str) -> tuple[int, str]:
    """Bytes of a file, and what changes when it does."""
    if "file" in filesystem.protocol:
        return _describe_local(Path(file))
    information = filesystem.info(file)
    told = json.dumps(information, sort_keys=True, default=str)
    return int(information["size"]), hashlib.sha256(told.encode()).hexdigest()[:16]


def _describe_local(file: Path) -> tuple[int, str]:
    status = file.stat()
    return status.st_size, f"{status.st_size} bytes, {status.st_mtime_ns} ns"
