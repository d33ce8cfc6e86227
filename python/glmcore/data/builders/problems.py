"""Problems with solutions as documents: records of any data set, and tasks of `reasoning-gym`."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glmcore.data.documents import Document, OnReject, Record, without_surrogates
from glmcore.data.reasoning import TASKS, Problem, Solution, generate_problems, is_held_out, score, solve, to_messages

_THINKING = re.compile(r"\A\s*<think>(?P<steps>.*?)</think>(?P<rest>.*)\Z", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{|<\|begin_of_box\|>")
_MAX_BOX_CHARS = 2_000
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class ProblemFields:
    """Names of a record's fields; a dot leads into a table (`metadata.answer`)."""

    question: str = "question"
    reasoning: str | None = "reasoning"
    """The steps. A record without it has them before `</think>` in the solution, or has none."""
    solution: str = "solution"
    """What is said in the end."""
    answer: str | None = "answer"
    """The right answer, to check the solution by; it is the solution of a record that has none."""


def problem_documents(
    records: Iterable[Record],
    *,
    fields: ProblemFields = ProblemFields(),
    source: str = "reasoning",
    thinking_share: float = 1.0,
    answer_mark: str | None = None,
    drop_held_out: bool = True,
    on_reject: OnReject,
) -> Iterator[Document]:
    """A conversation of each record: the question, and the solution after its steps as thinking.

    A solution is checked where it can be: one that ends in a box, or in `answer_mark`, has to agree with the right
    answer, and so does one that is nothing but a number; a record of a task in `TASKS` (`metadata.source_dataset`) has
    to satisfy its verifier. Verifiers of other tasks are not asked: some evaluate the answer as code.

    Args:
        records: Place and fields of each.
        fields: Where the parts are.
        source: Source of the documents.
        thinking_share: Share of the problems, by their question, that keep their steps; the rest has the answer alone.
        answer_mark: What stands between steps and answer in the solution, such as `####` in GSM8K; the part before it
            becomes the steps if there are no others.
        drop_held_out: Leave out the eighth of all questions that is for evaluation (`is_held_out`).
        on_reject: Told of each record that is left out.

    Source: reasoning data with answers that are verified where they can be: arXiv:2508.06471, sections 2.3 and 3.1.
    """
    for place, record in records:
        try:
            question = _text(record, fields.question, "question")
            solution, right = _solution(record, fields, answer_mark)
            _check(record, question, solution, right)
        except _LeftOutError as error:
            on_reject(place, str(error))
            continue
        if drop_held_out and is_held_out(question):
            on_reject(place, "held out for evaluation")
        else:
            yield Document(place, source, messages=conversation(question, solution, 1 - thinking_share))


def gym_documents(
    task: str,
    count: int,
    seed: int,
    *,
    options: Mapping[str, Any] | None = None,
    source: str = "reasoning",
    thinking_share: float = 1.0,
    on_reject: OnReject,
) -> Iterator[Document]:
    """Distinct problems of a task of `reasoning-gym` as conversations; none is held out.

    A task with a solver of our own (`TASKS`) has its steps as thinking; another has its known answer alone. Every
    answer satisfies the task's verifier, and a problem without such an answer is left out.

    Args:
        task: Name in `reasoning-gym`.
        count: Problems to draw; fewer come where the task has no more.
        seed: Of the draws.
        options: Difficulty, as the task names it; None for what `TASKS` says, else the task's own.
        source: Source of the documents.
        thinking_share: Share of the problems that keep their steps.
        on_reject: Told of each problem that is left out.

    Raises:
        DataError: There is no such task, or it does not take the options.
    """
    if options is None and task not in TASKS:
        options = {}
    for problem in generate_problems(task, count, seed, held_out=False, options=options):
        solution = solve(problem) if task in TASKS else _known(problem)
        if solution is None:
            on_reject(problem.id, "no answer that the task's verifier accepts")
        else:
            yield Document(problem.id, source, messages=conversation(problem.question, solution, 1 - thinking_share))


def conversation(question: str, solution: Solution, direct_answer_share: float) -> list[dict[str, Any]]:
    """The question and its solution, with its steps or, for a share of all questions, without.

    GLM-4.5 is tuned on thinking and non-thinking answers in balance (report, section 3.1), which leaves it to
    reinforcement learning to find out when thinking pays.
    """
    draw = hashlib.sha256(f"thinking/{question}".encode()).digest()[0] / 256
    if draw < direct_answer_share:
        solution = Solution("", solution.answer)
    return to_messages(question, solution)


class _LeftOutError(Exception):
    """Why a record is left out."""


def _known(problem: Problem) -> Solution | None:
    """The task's own answer, if its verifier accepts it."""
    return Solution("", problem.answer) if score(problem, problem.answer) == 1.0 else None


def _solution(record: Mapping[str, Any], fields: ProblemFields, mark: str | None) -> tuple[Solution, str | None]:
    """Steps and what is said in the end; and the right answer, if it is known apart from that."""
    right = (
        _text(record, fields.answer, "answer") if fields.answer and _get(record, fields.answer) is not None else None
    )
    steps = _text(record, fields.reasoning, "reasoning") if fields.reasoning and _get(record, fields.reasoning) else ""
    given = _get(record, fields.solution)
    if given is None and right is None:
        raise _LeftOutError(f"no {fields.solution!r} and no {fields.answer!r}")
    said = _text(record, fields.solution, "solution") if given is not None else str(right)
    thinking = _THINKING.match(said)
    if thinking is not None:
        steps, said = steps or thinking["steps"], thinking["rest"]
    elif "</think>" in said or "<think>" in said:
        raise _LeftOutError("thinking that does not end, or has no beginning")
    if mark is not None and mark in said:
        before, _, said = said.rpartition(mark)
        steps = steps or before
    if not said.strip():
        raise _LeftOutError("an empty solution")
    if mark is not None and right is not None and mark in right:
        right = right.rpartition(mark)[2]
    return Solution(steps.strip(), said.strip()), None if given is None else right


def _check(record: Mapping[str, Any], question: str, solution: Solution, right: str | None) -> None:
    """Raise if the solution can be checked and is wrong."""
    metadata = record.get("metadata")
    task = metadata.get("source_dataset") if isinstance(metadata, dict) else None
    said = boxed(solution.answer)
    if task in TASKS and isinstance(record.get("answer"), str):
        problem = Problem("", task, question, record["answer"], dict(record))
        if score(problem, said or solution.answer) < 1.0:
            raise _LeftOutError("the verifier of its task does not accept the answer")
    elif right is not None and said is not None and not same_answer(said, right):
        raise _LeftOutError(f"the answer {said[:40]!r} is not the right one")
    elif right is not None and said is None and _short(solution.answer) and not same_answer(solution.answer, right):
        raise _LeftOutError(f"the answer {solution.answer[:40]!r} is not the right one")


def boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` or `<|begin_of_box|>...<|end_of_box|>`; None if there is none that ends."""
    found: str | None = None
    for match in _BOX.finditer(text):
        last = min(len(text), match.end() + _MAX_BOX_CHARS)
        if match[0].startswith("<"):
            end = text.find("<|end_of_box|>", match.end(), last)
            found = text[match.end() : end] if end >= 0 else found
            continue
        depth = 1
        for at in range(match.end(), last):
            depth += (text[at] == "{") - (text[at] == "}")
            if not depth:
                found = text[match.end() : at]
                break
    return found


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are the same text or number, apart from space, `$`, thousands' commas and a final period."""
    one, other = _plain(one), _plain(other)
    if one == other:
        return True
    try:
        return float(one.replace(",", "")) == float(other.replace(",", ""))
    except ValueError:
        return False


def _plain(answer: str) -> str:
    return " ".join(answer.replace("$", "").split()).rstrip(".").casefold()


def _short(answer: str) -> bool:
    """Whether a solution is nothing but a number, so that it can be compared."""
    return _NUMBER.fullmatch(_plain(answer)) is not None


def _get(record: Mapping[str, Any], name: str) -> Any:
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(record: Mapping[str, Any], name: str, what: str) -> str:
    value = _get(record, name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise _LeftOutError(f"{what} {name!r} is missing, empty or no text")
    return without_surrogates(value)
