"""Issues and pull requests as documents, with the files that they touch."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from glmcore.data.builders import git
from glmcore.data.builders.files import name_reason, text_reason
from glmcore.data.builders.imports.graph import order_files
from glmcore.data.builders.joined import Measure, file_block
from glmcore.data.builders.people import People, by_bot
from glmcore.data.builders.redact import redact
from glmcore.data.builders.threads import Fields, Thread, Threads, closed_issues, login_of
from glmcore.data.documents import Document, OnReject, Record, without_surrogates

_COMMENTED_OUT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_MAIL_REPLY = re.compile(r"^On [^\n]{5,200} wrote:[ \t]*\n(?:[ \t]*\n|>[^\n]*\n?)*", re.MULTILINE)
_MAIL_NOTICE = re.compile(
    r"^(?:[-_\u2014]+[ \t]*\n)?(?:You are receiving this because|Reply to this email directly|Sent from my )[^\n]*\n?",
    re.MULTILINE,
)
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_HEAD_LINES, _TAIL_LINES = 80, 20
_HUNK_LINES = 8


@dataclass(frozen=True)
class IssueRules:
    """Which issues and pull requests are learned from."""

    min_chars: int = 200
    """Text of an issue with its comments, bots' left out."""
    max_single_chars: int = 7_000
    """The same at most, if nobody but its author wrote: longer ones are mostly logs. Both bounds are BigCode's
    (bigcode-dataset, preprocessing/filtering_issues.py)."""
    merged_only: bool = True
    """Leave out pull requests that were not merged."""
    max_files: int = 50
    """Files that a pull request changes at most."""


def issue_documents(
    records: Iterable[Record],
    *,
    repository: str = "",
    checkouts: Mapping[str, Path] | None = None,
    source: str = "repository",
    max_length: int = 100_000,
    measure: Measure = len,
    rules: IssueRules = IssueRules(),
    on_reject: OnReject,
) -> Iterator[Document]:
    """A document of each pull request with the issues that it closes, and of each other issue.

    A pull request's has, in this order: the issues with their comments, the request with its comments and reviews, the
    files that it changes as they were before, each after those that it imports, and its diff. Of the files the longest
    are left out if the document would become too long. People are `user1`, `user2`, ... in each document, also where
    they are mentioned; e-mail addresses and keys are replaced; what bots wrote is left out, as are quotes and notices
    in answers by mail, and the middle of comments of over 100 lines.

    Args:
        records: Place and fields of each, in the shape of GitHub's API; see `Threads`.
        repository: `owner/name` for records that do not say theirs.
        checkouts: Git repositories by `owner/name`, from which files are read at the base commit; without one the
            document has no files.
        source: Source of the documents.
        max_length: Length of a document at most, by `measure`; what is longer without any file is left out.
        measure: Length of a text.
        rules: Which are kept.
        on_reject: Told of each record and thread that is left out.

    Source: GLM-4.5 is trained on filtered issues and pull requests of a repository in one context (arXiv:2508.06471,
    section 2.3). Form and rules are not published: the filter follows StarCoder's (arXiv:2305.06161, section 3), the
    rest is our own.
    """
    with closing(Threads(records, repository, on_reject)) as threads:
        yield from _documents(threads, checkouts or {}, source, max_length, measure, rules, on_reject)


def _documents(
    threads: Threads,
    checkouts: Mapping[str, Path],
    source: str,
    max_length: int,
    measure: Measure,
    rules: IssueRules,
    on_reject: OnReject,
) -> Iterator[Document]:
    told: set[tuple[str, int]] = set()
    alone: list[tuple[str, int]] = []
    for thread in threads:
        name = _name(thread)
        if not thread.pull:
            if not threads.closing_pulls(thread.repository, thread.number):
                yield from _issue_alone(thread, source, max_length, measure, rules, on_reject)
            else:
                alone.append((thread.repository, thread.number))
            continue
        closed = [
            threads.get(thread.repository, number)
            for number in closed_issues(thread.pull, thread.repository)
            if threads.closing_pulls(thread.repository, number)[:1] == [thread.number]
        ]
        closed = [issue for issue in closed if issue.issue]
        reason = _pull_reason(thread, rules)
        text = ""
        if reason is None:
            text = _render_pull(thread, closed, checkouts.get(thread.repository), max_length, measure)
            length = measure(text)
            if length > max_length:
                reason = f"a length of {length}, at most {max_length} is taken"
        if reason is not None:
            on_reject(name, reason)
            continue
        told |= {(issue.repository, issue.number) for issue in closed}
        yield Document(name, source, text)
    for place in alone:
        if place not in told:  # its pull request was left out, or lies elsewhere
            yield from _issue_alone(threads.get(*place), source, max_length, measure, rules, on_reject)


def _issue_alone(
    thread: Thread, source: str, max_length: int, measure: Measure, rules: IssueRules, on_reject: OnReject
) -> Iterator[Document]:
    reason = _issue_reason(thread, rules)
    text = ""
    if reason is None:
        people = People(thread)
        text = _head(thread) + _render_issue(thread, people)
        length = measure(text)
        reason = f"a length of {length}, at most {max_length} is taken" if length > max_length else None
    if reason is None:
        yield Document(_name(thread), source, text)
    else:
        on_reject(_name(thread), reason)


def _issue_reason(thread: Thread, rules: IssueRules) -> str | None:
    if not thread.issue:
        return "comments without their issue"
    if by_bot(thread.issue):
        return "made by a bot"
    said = [thread.issue, *_human(thread.comments)]
    size = sum(len(_body(fields)) for fields in said)
    if size < rules.min_chars:
        return f"{size} characters, at least {rules.min_chars} are wanted"
    users = {login_of(fields) for fields in said}
    if len(users) < 2 and size > rules.max_single_chars:
        return f"{size} characters by one user, at most {rules.max_single_chars} are taken"
    return None


def _pull_reason(thread: Thread, rules: IssueRules) -> str | None:
    if by_bot(thread.pull):
        return "made by a bot"
    if rules.merged_only and not thread.pull.get("merged_at"):
        return "not merged"
    if not any(isinstance(file.get("patch"), str) for file in thread.files):
        return "no change of text"
    if len(thread.files) > rules.max_files:
        return f"{len(thread.files)} files, at most {rules.max_files} are taken"
    return None


def _render_pull(thread: Thread, closed: list[Thread], checkout: Path | None, max_length: int, measure: Measure) -> str:
    people = People(*closed, thread)
    before = _head(thread) + "".join(_render_issue(issue, people) for issue in closed)
    before += f"# pull request {thread.number}: {people.hide(_title(thread.pull))}\n"
    before += f"{people.of(login_of(thread.pull))}:\n{_said(thread.pull, people)}\n"
    for review in _in_time(_human(thread.reviews)):
        if _body(review).strip():
            before += f"{people.of(login_of(review))} in a review:\n{_said(review, people)}\n"
    before += _discussion(thread.comments, people)
    for comment in _in_time(_human(thread.review_comments)):
        hunk = comment.get("diff_hunk")
        lines = redact(hunk).splitlines()[-_HUNK_LINES:] if isinstance(hunk, str) else []
        before += f"{people.of(login_of(comment))} on {comment.get('path')}:\n" + "".join(f"{line}\n" for line in lines)
        before += f"{_said(comment, people)}\n"
    diff = "".join(_patch(file) for file in sorted(thread.files, key=_filename))
    room = max_length - measure(before) - measure(diff)
    files = _files_before(thread, checkout) if checkout is not None else {}
    return before + _fitting(files, room, measure) + diff


def _fitting(files: dict[str, str], room: int, measure: Measure) -> str:
    """Files in the order of their imports, the longest left out until they fit."""
    blocks = {path: file_block(path, text) for path, text in files.items()}
    sizes = {path: measure(block) for path, block in blocks.items()}
    total = sum(sizes.values())
    for path in sorted(sizes, key=lambda path: (-sizes[path], path)):
        if total > room:
            total -= sizes[path]
            del blocks[path]
    return "".join(blocks[path] for path in order_files(files) if path in blocks)


def _files_before(thread: Thread, checkout: Path) -> dict[str, str]:
    """Text of the files that a pull request changes, at its base commit."""
    base = thread.pull.get("base")
    commit = base.get("sha") if isinstance(base, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        return {}
    paths: list[str] = []
    for file in thread.files:
        path = file.get("previous_filename") or _filename(file)
        fits = isinstance(path, str) and path and "\n" not in path and "\0" not in path
        if file.get("status") != "added" and fits and name_reason(path, 0) is None:
            paths.append(path)
    found: dict[str, str] = {}
    contents = git.read_objects(checkout, [f"{commit}:{path}" for path in paths])
    for path, data in zip(paths, contents, strict=True):
        if data is None or name_reason(path, len(data)) is not None or b"\0" in data[:8_000]:
            continue
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            continue
        if text.strip() and text_reason(path, text) is None:
            found[path] = redact(text)
    return found


def _patch(file: Fields) -> str:
    """A file's diff; the API gives the hunks alone."""
    path = _filename(file)
    status = file.get("status")
    before = file.get("previous_filename") if status == "renamed" else path
    lines = [f"diff --git a/{before} b/{path}"]
    if status == "renamed":
        lines += [f"rename from {before}", f"rename to {path}"]
    patch = file.get("patch")
    if isinstance(patch, str):
        old = "/dev/null" if status == "added" else f"a/{before}"
        new = "/dev/null" if status == "removed" else f"b/{path}"
        reason = name_reason(path, 0)
        lines += [
            f"--- {old}",
            f"+++ {new}",
            f"({reason})" if reason else redact(without_surrogates(patch)).rstrip("\n"),
        ]
    elif status != "renamed":
        lines.append("(binary or too long)")
    return "\n".join(lines) + "\n"


def _head(thread: Thread) -> str:
    return f"# repository: {thread.repository}\n"


def _render_issue(thread: Thread, people: People) -> str:
    issue = thread.issue
    labels = issue.get("labels")
    names = [label.get("name") if isinstance(label, dict) else label for label in labels or ()]
    told = ", ".join(str(name) for name in names if name)
    heading = f"# issue {thread.number}: {people.hide(_title(issue))}\n" + (f"labels: {told}\n" if told else "")
    said = f"{people.of(login_of(issue))}:\n{_said(issue, people)}\n"
    return heading + said + _discussion(thread.comments, people)


def _discussion(comments: list[Fields], people: People) -> str:
    return "".join(
        f"{people.of(login_of(comment))}:\n{_said(comment, people)}\n"
        for comment in _in_time(_human(comments))
        if _said(comment, people).strip()
    )


def _said(fields: Fields, people: People) -> str:
    """What a person wrote."""
    text = _MAIL_NOTICE.sub("", _MAIL_REPLY.sub("", _COMMENTED_OUT.sub("", _body(fields))))
    lines = text.strip().splitlines()
    if len(lines) > _HEAD_LINES + _TAIL_LINES:
        gap = f"({len(lines) - _HEAD_LINES - _TAIL_LINES} lines left out)"
        lines = [*lines[:_HEAD_LINES], gap, *lines[-_TAIL_LINES:]]
    return people.hide(redact("\n".join(lines))) + "\n"


def _name(thread: Thread) -> str:
    return f"{thread.repository}/{'pull' if thread.pull else 'issues'}/{thread.number}"


def _body(fields: Fields) -> str:
    body = fields.get("body")
    return without_surrogates(body).replace("\r\n", "\n") if isinstance(body, str) else ""


def _title(fields: Fields) -> str:
    title = fields.get("title")
    return redact(without_surrogates(title)) if isinstance(title, str) else ""


def _filename(file: Fields) -> str:
    return without_surrogates(str(file.get("filename") or ""))


def _human(comments: list[Fields]) -> list[Fields]:
    return [comment for comment in comments if not by_bot(comment)]


def _in_time(comments: list[Fields]) -> list[Fields]:
    """In the order of writing; the API's ids grow."""

    def key(comment: Fields) -> tuple[str, int]:
        number = comment.get("id")
        when = comment.get("created_at") or comment.get("submitted_at")
        return str(when or ""), number if isinstance(number, int) else 0

    return sorted(comments, key=key)
