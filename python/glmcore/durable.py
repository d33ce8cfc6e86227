"""Writes that survive a crash: a file or a directory appears whole, under its name, or not at all."""

import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_file(path: Path, content: bytes | str) -> None:
    """Write a whole file by temporary file, fsync and rename; on any error the old file stays."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary path beside `path`; what is written there becomes `path` when the block ends well."""
    with _becoming(path, path.with_name(f".{path.name}.tmp")) as temporary:
        yield temporary


@contextmanager
def private_file(path: Path) -> Generator[Path, None, None]:
    """As `atomic_file`, with a temporary name of this process: two that write the same content may meet.

    What a killed process leaves is `.NAME.*.tmp`. The directory is made if it is not there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _becoming(path, path.with_name(f".{path.name}.{os.getpid()}.tmp")) as temporary:
        yield temporary


@contextmanager
def _becoming(path: Path, temporary: Path) -> Generator[Path, None, None]:
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Generator[Path, None, None]:
    """Yield an empty temporary directory beside `path`; it becomes `path` when the block ends well.

    `path` must not exist. What an earlier, killed call left behind is removed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            fsync(file)
        fsync(temporary)
        temporary.rename(path)
        fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Remove a directory that, killed at any moment, is there whole or not at all.

    What a killed call leaves is `.NAME.tmp`, as `atomic_directory` does.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    path.rename(temporary)
    fsync(path.parent)
    shutil.rmtree(temporary)


@contextmanager
def resumable_directory(path: Path, task: dict[str, Any]) -> Generator[Path, None, None]:
    """Yield a temporary directory beside `path` that becomes `path` when the block ends well.

    What a killed or interrupted call of the same `task`, a JSON object, left there is still there; what another task
    left is removed. After an error nothing is left.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    note = temporary / ".task.json"
    told = json.dumps(task, sort_keys=True)
    if not (note.is_file() and note.read_text(encoding="utf-8") == told):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_file(note, told)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            fsync(file)
        note.unlink()  # as late as can be: what is left without it is begun anew
        fsync(temporary)
        temporary.rename(path)
        fsync(path.parent)
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def fsync(path: Path) -> None:
    """Force a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
