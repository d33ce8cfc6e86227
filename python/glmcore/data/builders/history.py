"""The commits of a repository as documents."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from glmcore.data.builders.commits import Commit, FileDiff, Merges, read_commits
from glmcore.data.builders.files import name_reason
from glmcore.data.builders.joined import Measure
from glmcore.data.builders.people import is_bot
from glmcore.data.builders.redact import redact as redacted
from glmcore.data.builders.redact import without_trailers
from glmcore.data.documents import Document, OnReject

_OBJECTS = ("index ", "similarity index ", "dissimilarity index ")


@dataclass(frozen=True)
class CommitRules:
    """Which commits are learned from."""

    max_files: int = 50
    """Files that a commit changes at most: more is a move, an import or a release."""
    max_changed_lines: int = 3_000
    min_message_chars: int = 8


def commit_documents(
    repository: Path,
    *,
    revision: str = "HEAD",
    name: str | None = None,
    source: str = "repository",
    merges: Merges = "skip",
    max_length: int = 100_000,
    measure: Measure = len,
    together: bool = True,
    redact: bool = True,
    rules: CommitRules = CommitRules(),
    on_reject: OnReject,
) -> Iterator[Document]:
    """Messages and diffs of a repository's commits, oldest first.

    Nobody is named: author, committer and dates are not written, lines of a message that name people (`Signed-off-by:`
    and the like) are left out, and e-mail addresses and keys are replaced in messages and diffs. Commits of bots are
    left out, as are diffs of binary, generated, vendored, minified and very long files, of which the document says so.

    Args:
        repository: Directory of the repository.
        revision: A commit, or a range such as `v1..v2`.
        name: First part of the documents' ids; the directory's name if None.
        source: Source of the documents.
        merges: See `read_commits`.
        max_length: Length of a document at most, by `measure`; a longer commit is left out.
        measure: Length of a text.
        together: Put commits that follow each other into one document, as far as they fit; else one document each.
        redact: Replace e-mail addresses and keys.
        rules: Which commits are kept.
        on_reject: Told of each commit that is left out.

    Raises:
        DataError: There is no such revision, no repository or no git.

    Source: GLM-4.5 is trained on commits in diff-like form, concatenated with others of the same repository
    (arXiv:2508.06471, section 2.3). Form and rules are not published; these are our own.
    """
    name = name or repository.absolute().name
    kept: list[tuple[str, str]] = []
    size = 0
    for commit in read_commits(repository, revision=revision, merges=merges):
        text, reason = render_commit(commit, rules, redact=redact)
        length = measure(text)
        if reason is None and length > max_length:
            reason = f"a length of {length}, at most {max_length} is taken"
        if reason is not None:
            on_reject(f"{name}/commit/{commit.name}", reason)
            continue
        if kept and (not together or size + length > max_length):
            yield _joined(name, source, kept)
            kept, size = [], 0
        kept.append((commit.name, text))
        size += length
    if kept:
        yield _joined(name, source, kept)


def render_commit(commit: Commit, rules: CommitRules, *, redact: bool) -> tuple[str, str | None]:
    """Message and diffs as a document has them, and why the commit is left out, if it is."""
    message = without_trailers(commit.message)
    text = f"commit: {message}\n\n" + "".join(render_diff(file) for file in commit.files) + "\n"
    return redacted(text) if redact else text, _reason(commit, message, rules)


def render_diff(file: FileDiff) -> str:
    """A file's diff without the names of git's objects; of a diff that is left out, its header and the reason."""
    header = [line for line in file.header if not line.startswith(_OBJECTS)]
    reason = left_out(file)
    if reason is None:
        return "\n".join([*header, *file.hunks]) + "\n"
    plain = [line for line in header if not line.startswith(("Binary files ", "GIT binary patch"))]
    return "\n".join([*plain, f"({reason})"]) + "\n"


def left_out(file: FileDiff) -> str | None:
    """Why a file's diff is not shown; None if it is."""
    if file.is_binary:
        return "binary"
    reason = name_reason(file.path, 0)
    if reason is not None:
        return reason
    return f"{file.num_changed_lines} changed lines, too long" if file.is_cut else None


def _reason(commit: Commit, message: str, rules: CommitRules) -> str | None:
    if is_bot(commit.author) or is_bot(commit.email):
        return "made by a bot"
    if commit.is_cut or len(commit.files) > rules.max_files:
        return f"{len(commit.files)} files, at most {rules.max_files} are taken"
    if len(message) < rules.min_message_chars:
        return "hardly a message"
    shown = [file for file in commit.files if left_out(file) is None]
    if not any(file.num_changed_lines or file.path != file.old_path for file in shown):
        return "no change of text"
    changed = sum(file.num_changed_lines for file in shown)
    if changed > rules.max_changed_lines:
        return f"{changed} changed lines, at most {rules.max_changed_lines} are taken"
    return None


def _joined(name: str, source: str, commits: Iterable[tuple[str, str]]) -> Document:
    names, texts = zip(*commits, strict=True)
    place = names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"
    return Document(f"{name}/commit/{place}", source, "".join(texts))
