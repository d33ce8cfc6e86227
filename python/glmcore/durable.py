"""Writes that survive a crash: a file or a directory appears whole, under its name, or not at all."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, content: bytes | str) -> None:
    """Write a whole file by temporary file, fsync and rename; on any error the old file stays."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary path beside `path`; what is written there becomes `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.tmp")
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


def fsync(path: Path) -> None:
    """Force a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
