"""Files of a commit of a git repository, by the git command."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from glmcore.data.readers.record import Limits, Piece, Record, Reject
from glmcore.errors import DataError

TIMEOUT_S = 60
_FILES = (b"100644", b"100755")  # neither links nor submodules


def resolve(repository: Path, revision: str) -> str:
    """The full name of a commit.

    Raises:
        DataError: There is no such commit, no repository or no git.
    """
    return _git(repository, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").decode().strip()


def size_of(repository: Path, commit: str) -> int:
    """Bytes of all files of a commit."""
    return sum(size for _, _, size in _files(repository, commit))


def read_git(piece: Piece, limits: Limits, reject: Reject) -> Iterator[Record]:
    """Text files of the commit that `piece.stamp` names, in the order of their paths; each record has `path`."""
    repository = Path(piece.url)
    wanted: list[tuple[str, str]] = []
    for path, name, size in _files(repository, piece.stamp):
        if size > limits.max_record_bytes:
            reject(path, "too_long", f"{size} bytes, data.max_record_bytes is {limits.max_record_bytes}")
        else:
            wanted.append((path, name))
    for (path, _), data in zip(wanted, _contents(repository, [name for _, name in wanted]), strict=True):
        if b"\0" in data[:8_000]:  # git's own test
            reject(path, "binary_file", "a zero byte near the start")
            continue
        try:
            yield Record(path, {"path": path, "text": data.decode("utf-8-sig")})
        except UnicodeDecodeError as error:
            reject(path, "invalid_utf8", f"at byte {error.start}", data)


def _files(repository: Path, commit: str) -> list[tuple[str, str, int]]:
    """Path, object and bytes of each file."""
    found: list[tuple[str, str, int]] = []
    for entry in _git(repository, "ls-tree", "-r", "-z", "-l", "--full-tree", commit).split(b"\0")[:-1]:
        about, _, path = entry.partition(b"\t")
        mode, _, name, size = about.split()
        if mode in _FILES:
            found.append((path.decode("utf-8", errors="backslashreplace"), name.decode(), int(size)))
    return found


def _contents(repository: Path, names: list[str]) -> Iterator[bytes]:
    """Objects in the given order, one in memory at a time."""
    command = ["git", "-C", str(repository), "cat-file", "--batch"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        ask, answer = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
        try:
            for name in names:
                ask.write(f"{name}\n".encode())
                ask.flush()
                header = answer.readline().split()
                if len(header) != 3:
                    raise DataError(f"{repository}: object {name} is missing: the repository is damaged or partial")
                yield answer.read(int(header[2]))
                answer.read(1)
        finally:
            process.kill()


def _git(repository: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(repository), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"cannot run git in {repository}: {error}") from None
    if done.returncode:
        message = done.stderr.decode("utf-8", errors="replace").strip()
        raise DataError(f"cannot read git repository {repository}: {message}")
    return done.stdout
