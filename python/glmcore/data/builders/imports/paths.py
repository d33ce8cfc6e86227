"""Paths within a repository: parts joined by `/`, the empty path for its root."""

import posixpath
from collections.abc import Sequence

MAX_CANDIDATES = 1_000
"""Files of one name that are looked at for one import."""


def parent(path: str) -> str:
    """The directory of a path."""
    return path.rpartition("/")[0]


def join(directory: str, relative: str) -> str | None:
    """`relative` seen from `directory`; None where that leads out of the repository."""
    path = posixpath.normpath(posixpath.join(directory, relative))
    if path == "." or path == "":
        return ""
    return None if path == ".." or path.startswith(("../", "/")) else path


def ancestors(directory: str) -> list[str]:
    """The directory and all above it, the nearest first, the root last."""
    found = [directory]
    while directory:
        directory = parent(directory)
        found.append(directory)
    return found


def common_depth(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of what two sequences of parts begin with alike."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
