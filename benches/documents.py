"""Documents built per second: repositories, commits, fill-in-the-middle and trajectories, on one core.

Sources are the standard library's files, the commits of the checkout and a made-up session of an agent. Seconds are CPU
time of this process, but for the commits, where git does most: theirs are on the wall. Run it with
`python benches/documents.py`.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from glmcore.data.builders.files import read_directory
from glmcore.data.builders.fim import Span, fill_in_middle
from glmcore.data.builders.history import commit_documents
from glmcore.data.builders.imports.graph import order_files
from glmcore.data.builders.repository import file_documents, repository_documents
from glmcore.data.builders.session_log import session_documents
from glmcore.data.documents import Document

LIBRARY = Path(os.__file__).parent
REPEATS = 3
TURNS = 2_000
SPANS: tuple[Span, ...] = ("characters", "lines", "blocks")


def ignore(place: str, reason: str) -> None:
    """What is left out does not matter here."""


def session(turns: int) -> list[dict[str, object]]:
    """Records of a session in which each answer calls one tool."""
    records: list[dict[str, object]] = [_record(0, "user", "Do it")]
    for turn in range(turns):
        use = {"type": "tool_use", "id": f"t{turn}", "name": "Bash", "input": {"command": "ls " + "x" * 200}}
        records.append(_record(len(records), "assistant", [{"type": "text", "text": "I look. " * 20}, use], f"m{turn}"))
        result = {"type": "tool_result", "tool_use_id": f"t{turn}", "content": "a line of output\n" * 100}
        records.append(_record(len(records), "user", [result]))
    records.append(_record(len(records), "assistant", [{"type": "text", "text": "Done"}], "end"))
    return records


def _record(number: int, role: str, content: object, name: str | None = None) -> dict[str, object]:
    message = {"role": role, "content": content, "id": name}
    return {"uuid": str(number), "parentUuid": str(number - 1) if number else None, "type": role, "message": message}


def show(
    what: str, count: int, size: int, work: Callable[[], object], clock: Callable[[], float] = time.process_time
) -> None:
    """Print the best rate of several runs."""
    best = float("inf")
    for _ in range(REPEATS):
        start = clock()
        work()
        best = min(best, clock() - start)
    print(f"{what:<40} {count:>7,} {size / 1e6:>7.1f} MB {count / best:>10,.0f}/s {size / best / 1e6:>7.1f} MB/s")


def main() -> None:
    """Print a line for each builder."""
    files = list(read_directory(LIBRARY, ignore))
    texts = {file.path: file.text for file in files}
    size = sum(map(len, texts.values()))
    show("files read and filtered", len(files), size, lambda: list(read_directory(LIBRARY, ignore)))
    show("files ordered by imports", len(files), size, lambda: order_files(texts))
    joined = lambda: list(file_documents(files, name="n", source="s", max_length=100_000))  # noqa: E731
    show("files ordered and joined", len(files), size, joined)
    whole = lambda: list(repository_documents(LIBRARY, on_reject=ignore))  # noqa: E731
    show("a directory to documents, all steps", len(files), size, whole)
    documents = [Document(file.path, "code", file.text) for file in files]
    for span in SPANS:
        filled = lambda span=span: list(fill_in_middle(documents, rate=1.0, seed=0, span=span))  # noqa: E731
        show(f"fill-in-the-middle by {span}", len(files), size, filled)
    here = Path(__file__).resolve().parents[1]
    commits = list(commit_documents(here, together=False, on_reject=ignore))
    size = sum(len(commit.text or "") for commit in commits)
    show(
        "commits with diffs, wall",
        len(commits),
        size,
        lambda: list(commit_documents(here, on_reject=ignore)),
        time.perf_counter,
    )
    records = session(TURNS)
    size = sum(len(str(record)) for record in records)
    show("records of a session", len(records), size, lambda: list(session_documents("s", records, on_reject=ignore)))


if __name__ == "__main__":
    main()
