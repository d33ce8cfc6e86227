"""The commits of a git repository as documents."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from glmcore.data.documents import Document

MAX_COMMIT_CHARS = 16_000
TIMEOUT_S = 30
_SEPARATOR = "\x1e"


def collect_commits(directory: Path, max_bytes: int) -> Iterator[Document]:
    """Message and diff of each commit, oldest first, as far as `max_bytes`; none outside a repository.

    Args:
        directory: Any directory of a checkout.
        max_bytes: Text to give at most.
    """
    size = 0
    for commit in _log(directory).split(_SEPARATOR)[1:]:
        text = commit.strip()[:MAX_COMMIT_CHARS]
        size += len(text.encode())
        if size > max_bytes:
            return
        name, _, body = text.partition("\n")
        yield Document(id=f"commit/{name}", source="repository", text=body.strip())


def _log(directory: Path) -> str:
    """All commits with diffs; empty where git or a repository is missing."""
    command = ["git", "log", "--reverse", "--no-color", "--patch", "--no-ext-diff", "--unified=2"]
    command += [f"--format={_SEPARATOR}%H%ncommit: %s%n%n%b", "--", ".", ":!*.lock"]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else ""
