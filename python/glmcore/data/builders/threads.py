"""Issues and pull requests with all that belongs to them, from records in the shape of GitHub's API."""

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from glmcore.data.documents import OnReject, Record, without_surrogates

Fields = dict[str, Any]
_PLACE = re.compile(
    r"(?:/repos|(?<!api\.)github\.com)/(?P<repository>[^/\s]+/[^/\s]+)(?:/(?:issues|pulls?)/(?P<number>\d+))?"
)
_LINKS = ("issue_url", "pull_request_url", "repository_url", "url", "contents_url", "blob_url", "html_url")
_NESTED = {"comments": "comment", "review_comments": "review_comment", "reviews": "review", "files": "file"}
_CLOSES = re.compile(
    r"\b(?:close[sd]?|fix(?:e[sd])?|resolve[sd]?)\b:?\s+"
    r"(?:(?P<other>[\w.-]+/[\w.-]+)?#|https://github\.com/(?P<linked>[\w.-]+/[\w.-]+)/issues/)(?P<number>\d{1,9})\b",
    re.IGNORECASE,
)
"""The words by which a pull request closes an issue when it is merged (GitHub's documentation, "Linking a pull request
to an issue")."""


@dataclass
class Thread:
    """An issue or a pull request."""

    repository: str
    number: int
    issue: Fields = field(default_factory=dict[str, Any])
    """What the API gives for the issue, and for a pull request also the issue that it is."""
    pull: Fields = field(default_factory=dict[str, Any])
    """Empty for an issue."""
    comments: list[Fields] = field(default_factory=list[Fields])
    reviews: list[Fields] = field(default_factory=list[Fields])
    review_comments: list[Fields] = field(default_factory=list[Fields])
    files: list[Fields] = field(default_factory=list[Fields])
    """Files that a pull request changes, with patches."""

    @property
    def main(self) -> Fields:
        """What was written first."""
        return self.pull or self.issue


class Threads:
    """All threads of some records, joined by repository and number; held in a temporary file, not in memory.

    A record is told by its fields: an issue or a pull request has `number` and `title` (a pull request `base` too), a
    comment `issue_url`, a review comment `pull_request_url` and `path`, a review `pull_request_url` and `state`, a
    changed file `filename`. Issues and pull requests may also have lists of those as `comments`, `review_comments`,
    `reviews` and `files`; a file on its own needs a `pull_number`, or comes as `{"pull_number": 1, "files": [...]}`.

    Args:
        records: Place and fields of each.
        repository: `owner/name` for records that do not say theirs.
        on_reject: Told of each record that is none of these.
    """

    def __init__(self, records: Iterable[Record], repository: str, on_reject: OnReject) -> None:
        self._rows = sqlite3.connect("")  # a file of SQLite's own, gone with the connection
        self._rows.execute("CREATE TABLE part (repository, number INTEGER, kind, at INTEGER PRIMARY KEY, fields)")
        self._rows.execute("CREATE TABLE closes (repository, issue INTEGER, pull INTEGER, merged)")
        for place, record in records:
            parts = _parts(record, repository)
            if not parts:
                on_reject(place, "no issue, pull request, comment, review or changed file")
            for where, number, kind, fields in parts:
                row = (where, number, kind, json.dumps(fields, default=str))
                self._rows.execute("INSERT INTO part (repository, number, kind, fields) VALUES (?, ?, ?, ?)", row)
                if kind == "pull":
                    for issue in closed_issues(fields, where):
                        merged = bool(fields.get("merged_at"))
                        self._rows.execute("INSERT INTO closes VALUES (?, ?, ?, ?)", (where, issue, number, merged))
        self._rows.execute("CREATE INDEX by_number ON part (repository, number)")

    def close(self) -> None:
        """Remove the temporary file."""
        self._rows.close()

    def __iter__(self) -> Iterator[Thread]:
        """Threads by repository and number."""
        names = self._rows.execute("SELECT DISTINCT repository, number FROM part ORDER BY repository, number")
        for repository, number in names:
            yield self.get(repository, number)

    def get(self, repository: str, number: int) -> Thread:
        """One thread; without fields if there are none."""
        thread = Thread(repository, number)
        found = self._rows.execute(
            "SELECT kind, fields FROM part WHERE repository = ? AND number = ? ORDER BY at", (repository, number)
        )
        for kind, text in found:
            fields = json.loads(text)
            if kind in ("issue", "pull"):
                getattr(thread, kind).update(fields)
            else:
                getattr(thread, f"{kind}s").append(fields)
        return thread

    def closing_pulls(self, repository: str, issue: int) -> list[int]:
        """Pull requests that close an issue, merged ones first."""
        found = self._rows.execute(
            "SELECT DISTINCT pull, merged FROM closes WHERE repository = ? AND issue = ? ORDER BY merged DESC, pull",
            (repository, issue),
        )
        return [pull for pull, _ in found if pull != issue]


def closed_issues(pull: Fields, repository: str) -> list[int]:
    """Numbers of the issues of its own repository that a pull request says it closes."""
    text = f"{pull.get('title') or ''}\n{pull.get('body') or ''}"
    found: dict[int, None] = {}
    for match in _CLOSES.finditer(text):
        if (match["other"] or match["linked"] or repository).lower() == repository.lower():
            found[int(match["number"])] = None
    return sorted(found)


def login_of(fields: Fields) -> str:
    """Who wrote something; `ghost` if they are gone, as GitHub has it."""
    user = fields.get("user")
    return without_surrogates(str(user.get("login") or "ghost")) if isinstance(user, dict) else "ghost"


def _parts(record: Fields, repository: str) -> list[tuple[str, int, str, Fields]]:
    """Repository, number, kind and fields of what a record holds."""
    kind = _kind(record)
    where, number = _place(record, repository)
    if kind is None or number is None:
        return []
    nested = {name: record[name] for name in _NESTED if isinstance(record.get(name), list)}
    own = {name: value for name, value in record.items() if name not in nested}
    parts = [(where, number, kind, own)] if kind != "files" else []
    for name, values in nested.items():
        parts += [(where, number, _NESTED[name], value) for value in values if isinstance(value, dict)]
    return parts


def _kind(record: Fields) -> str | None:
    if isinstance(record.get("title"), str) and "number" in record:
        return "pull" if "base" in record or "diff_url" in record else "issue"
    if "pull_request_url" in record and "path" in record:
        return "review_comment"
    if "pull_request_url" in record and "state" in record:
        return "review"
    if "issue_url" in record and "body" in record:
        return "comment"
    if isinstance(record.get("filename"), str):
        return "file"
    return "files" if isinstance(record.get("files"), list) else None


def _place(record: Fields, repository: str) -> tuple[str, int | None]:
    """Repository and number that a record belongs to."""
    number = next((record[name] for name in ("pull_number", "issue_number", "number") if name in record), None)
    given = record.get("repository") or record.get("repo")
    where = given.get("full_name") if isinstance(given, dict) else given
    for name in _LINKS:
        match = _PLACE.search(record[name]) if isinstance(record.get(name), str) else None
        if match is not None:
            where = where or match["repository"]
            number = match["number"] if number is None else number
    text = str(number)
    fits = text.isascii() and text.isdecimal() and len(text) < 10
    return without_surrogates(where) if isinstance(where, str) else repository, int(text) if fits else None
