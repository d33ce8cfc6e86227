"""Commits of a git repository with their diffs, read from `git log` as a stream of bounded memory."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from glmcore.data.builders import git
from glmcore.errors import DataError

Merges = Literal["skip", "first-parent"]
MAX_LINE_BYTES = 1 << 16
MAX_MESSAGE_BYTES = 1 << 16
MAX_DIFF_BYTES = 1 << 18
"""Of one file. What is over these bounds is read and dropped, and marked as cut."""
MAX_FILES = 2_000
_FORMAT = "%x00%x00%H%x00%an%x00%ae%x00%B%x00"
_NUM_ZEROS = 6
_HUNK = re.compile(rb"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)")
_ESCAPES = {b"a": b"\a", b"b": b"\b", b"t": b"\t", b"n": b"\n", b"v": b"\v", b"f": b"\f", b"r": b"\r"}
# A repository's own configuration must not change what is printed.
_PLAIN = (
    "--no-color",
    "--no-decorate",
    "--no-notes",
    "--no-ext-diff",
    "--no-textconv",
    "--no-show-signature",
    "--root",
)
_PLAIN += ("--encoding=UTF-8", "--diff-algorithm=myers", "--src-prefix=a/", "--dst-prefix=b/", "--inter-hunk-context=0")
_PLAIN += ("--find-renames", "-l400", "-O/dev/null", "--submodule=short", "--no-mailmap")


@dataclass
class FileDiff:
    """What a commit does to one file."""

    path: str
    """Path after the commit, or before it if the file is deleted."""
    old_path: str
    """Path before the commit."""
    header: list[str] = field(default_factory=list[str])
    """Lines before the first hunk, without their ends."""
    hunks: list[str] = field(default_factory=list[str])
    """Lines of all hunks, without their ends."""
    num_changed_lines: int = 0
    """Also those that are not in `hunks`."""
    is_binary: bool = False
    """Git calls it binary, or it is not UTF-8."""
    is_cut: bool = False
    """It is longer than what is kept, or has a line that is."""
    num_bytes: int = 0
    """Of the lines kept."""


@dataclass(frozen=True)
class Commit:
    """A commit; who made it is only for telling machines from people."""

    name: str
    author: str
    email: str
    message: str
    files: list[FileDiff]
    is_cut: bool
    """There are more files, or the message is longer, than what is kept."""


def read_commits(
    repository: Path,
    *,
    revision: str = "HEAD",
    merges: Merges = "skip",
    unified: int = 3,
    paths: Sequence[str] = (),
) -> Iterator[Commit]:
    """Commits that `revision` leads to, oldest first.

    A file's diff ends where its hunks say so, so no text in a message or a file can pass for another commit.

    Args:
        repository: Directory of the repository.
        revision: A commit, or a range such as `v1..v2`.
        merges: `skip` leaves merges out, whose changes belong to what they merge. `first-parent` follows only the
            first parent and gives a merge the whole change that it brings: a commit for each merged pull request.
        unified: Unchanged lines around each change.
        paths: Only what changes these.

    Raises:
        DataError: There is no such revision, no repository or no git; or the repository is damaged, after the commits
            that could be read.
    """
    git.resolve(repository, re.split(r"\.\.\.?", revision)[-1] or "HEAD")
    chosen = ["--no-merges"] if merges == "skip" else ["--first-parent", "--diff-merges=first-parent"]
    command = ["log", "--reverse", "--patch", f"--unified={unified}", f"--format={_FORMAT}", *_PLAIN, *chosen]
    with git.pipe(repository, *command, "--end-of-options", revision, "--", *paths) as process:
        yield from parse_log(process.taken)
        if process.wait():
            raise DataError(f"git log in {repository} failed: the repository is damaged, or `git fsck` says more")


def parse_log(stream: IO[bytes]) -> Iterator[Commit]:
    """Commits of a log in the form that `read_commits` asks for.

    Raises:
        DataError: It is no such log.
    """
    line, _ = _line(stream)
    while line:
        if not line.startswith(b"\0\0"):
            if line.strip():
                raise DataError(f"no log of git: {line[:60]!r}")
            line, _ = _line(stream)
            continue
        fields, message_cut = _header(line, stream)
        files, line, files_cut = _diff(stream)
        name, author, email, message = (part.decode("utf-8", errors="replace") for part in fields)
        yield Commit(name, author, email, message.strip(), files, message_cut or files_cut)


def _header(line: bytes, stream: IO[bytes]) -> tuple[list[bytes], bool]:
    """Name, author, address and message of a commit."""
    kept = line
    zeros = line.count(b"\0")
    is_cut = False
    while zeros < _NUM_ZEROS:
        line, cut = _line(stream)
        if not line:
            raise DataError("a log of git that ends within a commit")
        zeros += line.count(b"\0")
        is_cut |= cut or len(kept) > MAX_MESSAGE_BYTES
        if len(kept) <= MAX_MESSAGE_BYTES:
            kept += line
    return (kept.split(b"\0") + [b""] * _NUM_ZEROS)[2:6], is_cut


def _diff(stream: IO[bytes]) -> tuple[list[FileDiff], bytes, bool]:
    """The files of a commit, the first line behind them, and whether some are left out."""
    files: list[FileDiff] = []
    num_files = 0
    old = new = 0  # lines that the hunk still has
    file = FileDiff("", "")
    while True:
        line, is_cut = _line(stream)
        if old > 0 or new > 0:
            sign = line[:1]
            old -= sign != b"+"
            new -= sign != b"-"
            file.num_changed_lines += sign in (b"+", b"-")
            _keep(file, line, is_cut)
            if not line:
                return files, line, True
        elif not line or line.startswith(b"\0\0"):
            return files, line, num_files > len(files)
        elif line.startswith(b"diff --git "):
            num_files += 1
            file = FileDiff("", "")
            _name(file, line)
            if len(files) < MAX_FILES:
                files.append(file)
            file.header.append(_text(file, line))
        elif (hunk := _HUNK.match(line)) is not None:
            old, new = int(hunk[1] or 1), int(hunk[2] or 1)
            _keep(file, line, is_cut)
        elif line.startswith(b"\\"):  # no line end at the end of the file
            _keep(file, line, is_cut)
        elif line.strip():
            _name(file, line)
            if len(file.header) < 16:
                file.header.append(_text(file, line))


def _keep(file: FileDiff, line: bytes, is_cut: bool) -> None:
    """Add a line of a hunk as far as there is room."""
    file.num_bytes += len(line)
    if is_cut or file.num_bytes > MAX_DIFF_BYTES:
        file.is_cut = True
    if file.is_cut:
        file.hunks.clear()
    else:
        file.hunks.append(_text(file, line))


def _text(file: FileDiff, line: bytes) -> str:
    try:
        return line.removesuffix(b"\n").decode("utf-8")
    except UnicodeDecodeError:
        file.is_binary = True
        return line.removesuffix(b"\n").decode("utf-8", errors="replace")


def _name(file: FileDiff, line: bytes) -> None:
    """Learn a file's paths from a line of its header."""
    for start, attribute, prefix in (
        (b"--- ", "old_path", b"a/"),
        (b"+++ ", "path", b"b/"),
        (b"rename from ", "old_path", b""),
        (b"rename to ", "path", b""),
        (b"copy from ", "old_path", b""),
        (b"copy to ", "path", b""),
    ):
        if line.startswith(start):
            path = _path(line[len(start) :])
            if path != b"/dev/null":
                setattr(file, attribute, path.removeprefix(prefix).decode("utf-8", errors="backslashreplace"))
                if attribute == "old_path" and not file.path:
                    file.path = file.old_path
            return
    if line.startswith(b"diff --git "):  # without hunks this is all there is; both paths are the same then
        rest = line[len(b"diff --git ") :].rstrip(b"\n")
        half = rest[: len(rest) // 2]
        path = _path(half).removeprefix(b"a/").decode("utf-8", errors="backslashreplace")
        file.path = file.old_path = path
    elif line.startswith((b"Binary files ", b"GIT binary patch")):
        file.is_binary = True


def _path(text: bytes) -> bytes:
    """A path as git writes it: with a tab behind if it has spaces, in quotes with escapes if it has odd characters."""
    text = text.rstrip(b"\n").removesuffix(b"\t")
    if not (text.startswith(b'"') and text.endswith(b'"')):
        return text

    def plain(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code, 8) & 255]) if len(code) == 3 else _ESCAPES.get(code, code)

    return _ESCAPE.sub(plain, text[1:-1])


def _line(stream: IO[bytes]) -> tuple[bytes, bool]:
    """The next line, as far as it is kept, and whether more of it was dropped; empty at the end."""
    line = stream.readline(MAX_LINE_BYTES)
    if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
        return line, False
    rest = line
    while rest and not rest.endswith(b"\n"):
        rest = stream.readline(MAX_LINE_BYTES)
    return line + b"\n", True
