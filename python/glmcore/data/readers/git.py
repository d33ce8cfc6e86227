"""Files of a commit of a git repository, each a record."""

from collections.abc import Iterator
from pathlib import Path

from glmcore.data.builders import git
from glmcore.data.readers.record import Limits, Piece, Record, Reject


def size_of(repository: Path, commit: str) -> int:
    """Bytes of all files of a commit."""
    return sum(entry.size for entry in git.list_tree(repository, commit))


def read_git(piece: Piece, limits: Limits, reject: Reject) -> Iterator[Record]:
    """Text files of the commit that `piece.stamp` names, in the order of their paths; each record has `path`."""
    repository = Path(piece.url)
    wanted: list[git.TreeEntry] = []
    for entry in git.list_tree(repository, piece.stamp):
        if entry.size > limits.max_record_bytes:
            reject(entry.path, "too_long", f"{entry.size} bytes, data.max_record_bytes is {limits.max_record_bytes}")
        else:
            wanted.append(entry)
    contents = git.read_objects(repository, [entry.object for entry in wanted])
    for entry, data in zip(wanted, contents, strict=True):
        if data is None:
            reject(entry.path, "damaged_file", "its content is not in the repository")
        elif b"\0" in data[:8_000]:  # git's own test
            reject(entry.path, "binary_file", "a zero byte near the start")
        else:
            try:
                yield Record(entry.path, {"path": entry.path, "text": data.decode("utf-8-sig")})
            except UnicodeDecodeError as error:
                reject(entry.path, "invalid_utf8", f"at byte {error.start}", data)
