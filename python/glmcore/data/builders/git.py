"""The git command on repositories that nobody has looked at: no configuration of theirs runs anything."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from glmcore.errors import DataError

TIMEOUT_S = 60
_FILES = (b"100644", b"100755")  # neither links nor submodules
_SAFE = ("core.fsmonitor=false", "core.quotePath=false", "safe.directory=*", "log.showSignature=false")


class TreeEntry(NamedTuple):
    """A file of a commit."""

    path: str
    object: str
    """Name of its content."""
    size: int


def resolve(repository: Path, revision: str) -> str:
    """The full name of a commit.

    Raises:
        DataError: There is no such commit, no repository or no git.
    """
    name = run_git(
        repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", fails=True
    )
    if not name:
        raise DataError(f"{repository} has no commit {revision!r}, is no git repository, or belongs to somebody else")
    return name.decode().strip()


def list_tree(repository: Path, commit: str) -> list[TreeEntry]:
    """Regular files of a commit, by path.

    Raises:
        DataError: There is no such commit, no repository or no git.
    """
    entries: list[TreeEntry] = []
    for entry in run_git(repository, "ls-tree", "-r", "-z", "-l", "--full-tree", commit).split(b"\0")[:-1]:
        about, _, path = entry.partition(b"\t")
        mode, _, name, size = about.split()
        if mode in _FILES:
            entries.append(TreeEntry(path.decode("utf-8", errors="backslashreplace"), name.decode(), int(size)))
    return sorted(entries)


def read_objects(repository: Path, names: Sequence[str]) -> Iterator[bytes | None]:
    """Contents of objects in the given order, one in memory at a time; None for one that is not there.

    Args:
        repository: Directory of the repository.
        names: Names of objects, or `commit:path`; without line ends.

    Raises:
        DataError: There is no repository or no git.
    """
    with pipe(repository, "cat-file", "--batch") as process:
        given, taken = process.given, process.taken
        for name in names:
            given.write(name.encode("utf-8", errors="surrogateescape") + b"\n")
            given.flush()
            header = taken.readline()
            if not header:
                raise DataError(f"{repository} is no git repository, or is damaged")
            if header.endswith((b" missing\n", b" ambiguous\n")):
                yield None
                continue
            _, kind, size = header.rsplit(b" ", 2)
            content = taken.read(int(size) + 1)[:-1]
            yield content if kind == b"blob" else None


def run_git(repository: Path, *arguments: str, fails: bool = False) -> bytes:
    """Output of a git command; with `fails` it is empty where the command fails.

    Raises:
        DataError: It failed or took too long.
    """
    try:
        done = subprocess.run(
            _command(repository, arguments), capture_output=True, env=_environment(), timeout=TIMEOUT_S
        )
    except OSError as error:
        raise DataError(f"cannot run git: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise DataError(f"git {arguments[0]} in {repository} took over {TIMEOUT_S} s") from None
    if done.returncode and fails:
        return b""
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise DataError(f"git {arguments[0]} in {repository}: {said[-1] if said else 'failed'}")
    return done.stdout


@dataclass(frozen=True)
class Running:
    """A git command that runs while it is read."""

    given: IO[bytes]
    """Its input."""
    taken: IO[bytes]
    """Its output."""
    wait: Callable[[], int]
    """Waits for its end and gives its status; for when all output is read."""


@contextmanager
def pipe(repository: Path, *arguments: str) -> Iterator[Running]:
    """Run a git command; it is ended when the block is left.

    Raises:
        DataError: It cannot be run.
    """
    command, environment, end = _command(repository, arguments), _environment(), subprocess.PIPE
    try:
        process = subprocess.Popen(command, env=environment, stdin=end, stdout=end, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise DataError(f"cannot run git: {error.strerror}") from None
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Running(process.stdin, process.stdout, process.wait)
    finally:
        process.kill()
        with suppress(BrokenPipeError):  # input that nobody took
            process.stdin.close()
        process.stdout.close()
        process.wait()


def _command(repository: Path, arguments: Sequence[str]) -> list[str]:
    settings = [part for setting in _SAFE for part in ("-c", setting)]
    return ["git", "-C", str(repository), "--no-pager", *settings, *arguments]


def _environment() -> dict[str, str]:
    """Only what git needs: neither the user's configuration nor the system's, no question, no network."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "SYSTEMROOT", "TMPDIR")}
    own = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
    return {**kept, **own, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_REPLACE_OBJECTS": "1"}
