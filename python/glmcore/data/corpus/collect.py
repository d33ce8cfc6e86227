"""All sources of a run's corpus."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from glmcore.data.builders.fim import fill_in_middle
from glmcore.data.builders.problems import conversation
from glmcore.data.corpus.git_history import collect_commits
from glmcore.data.corpus.installed import (
    collect_code_files,
    collect_prose,
    collect_repositories,
    read_packages,
)
from glmcore.data.documents import Document
from glmcore.data.lookups import SEARCH_TOOL, generate_lookups, to_messages
from glmcore.data.reasoning import Problem, Solution, generate_problems, solve, to_text
from glmcore.recipe import CorpusConfig


def collect(config: CorpusConfig, seed: int) -> dict[str, Iterable[Document]]:
    """Documents of each source, in a fixed order: prose, code, repository, reasoning, sft.

    Raises:
        DataError: A reasoning task is unknown.
    """
    packages = read_packages()
    commits = collect_commits(Path.cwd(), config.git_bytes)
    solved = list(_solved(config, seed))
    code = _distinct(collect_code_files(packages, config.code_bytes))
    return {
        "prose": _distinct(collect_prose(packages, config.prose_bytes)),
        "code": fill_in_middle(code, **config.fill_in_the_middle.model_dump(), seed=seed),
        "repository": _distinct(chain(collect_repositories(packages, config.repository_bytes), commits)),
        "reasoning": (Document(p.id, "reasoning", to_text(p, solution)) for p, solution in solved),
        "sft": chain(
            (
                Document(p.id, "sft", messages=conversation(p.question, solution, config.direct_answer_share))
                for p, solution in solved
            ),
            (
                Document(p.id, "sft", messages=to_messages(p, config.direct_answer_share), tools=[SEARCH_TOOL])
                for p in generate_lookups(config.lookups, seed, held_out=False)
            ),
        ),
    }


def _solved(config: CorpusConfig, seed: int) -> Iterator[tuple[Problem, Solution]]:
    """Training problems of all tasks that our solvers solve; none is held out."""
    for task, count in config.problems.items():
        for problem in generate_problems(task, count, seed, held_out=False):
            solution = solve(problem)
            if solution is not None:
                yield problem, solution


def _distinct(documents: Iterable[Document]) -> Iterator[Document]:
    """Documents without exact repetitions."""
    seen: set[bytes] = set()
    for document in documents:
        digest = hashlib.sha256(document.plain_text.encode("utf-8", errors="replace")).digest()
        if digest not in seen:
            seen.add(digest)
            yield document
