"""Reasoning problems with step-by-step solutions: questions and verifiers of `reasoning-gym`, solvers of our own.

A held-out problem is one whose question hashes into one eighth of all hashes, so no choice of seeds can bring it into
training data.
"""

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from glmcore.errors import DataError

MAX_ANSWER_CHARS = 400
"""Longer answers are wrong without a look."""
MAX_VAIN_DRAWS = 1_000
"""So many draws without a new question mean that a task has no more."""


@dataclass(frozen=True)
class Problem:
    """A question with what its verifier needs."""

    id: str
    task: str
    question: str
    answer: str
    entry: dict[str, Any] = field(repr=False)
    """The item of `reasoning-gym`, plain JSON values."""


@dataclass(frozen=True)
class Solution:
    """Steps that lead to the answer, and the answer alone."""

    steps: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A family of problems."""

    options: dict[str, Any]
    """Difficulty, as `reasoning-gym` has it."""
    solve: Callable[[str], Solution]
    """Solves a question from its text."""


def _solve_chain_sum(question: str) -> Solution:
    first, *rest = question.split(":")[1].replace("=", " ").split()
    total = int(first)
    steps: list[str] = []
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        result = total + int(term) if operator == "+" else total - int(term)
        steps.append(f"{total} {operator} {term} = {result}")
        total = result
    return Solution("\n".join(steps), str(total))


def _solve_letter_counting(question: str) -> Solution:
    letter, text = re.findall(r'"([^"]*)"', question)
    count = 0
    steps: list[str] = []
    for word in text.lower().split():
        count += word.count(letter)
        steps.append(f"{' '.join(word)} : {count}")
    return Solution("\n".join(steps), str(count))


def _solve_spell_backward(question: str) -> Solution:
    word = question.split(":")[-1].strip()
    return Solution(f"{' '.join(word)}\n{' '.join(reversed(word))}", word[::-1])


def _solve_count_bits(question: str) -> Solution:
    number = int(re.findall(r"\d+", question)[-1])
    steps: list[str] = []
    ones = 0
    while number:
        ones += number % 2
        steps.append(f"{number} : {number % 2} {ones}")
        number //= 2
    return Solution("\n".join(steps), str(ones))


def _solve_gcd(question: str) -> Solution:
    a, b = (int(number) for number in re.findall(r"\d+", question)[:2])
    steps: list[str] = []
    while b:
        steps.append(f"{a} % {b} = {a % b}")
        a, b = b, a % b
    return Solution("\n".join(steps), str(a))


TASKS: dict[str, Task] = {
    "chain_sum": Task({"min_terms": 2, "max_terms": 5, "min_digits": 1, "max_digits": 1}, _solve_chain_sum),
    "count_bits": Task({"min_n": 1, "max_n": 4_000}, _solve_count_bits),
    "gcd": Task({"min_numbers": 2, "max_numbers": 2, "min_value": 1, "max_value": 200}, _solve_gcd),
    "letter_counting": Task({"min_words": 1, "max_words": 4}, _solve_letter_counting),
    "spell_backward": Task({"min_word_len": 3, "max_word_len": 8}, _solve_spell_backward),
}
"""Tasks by the name that `reasoning-gym` gives them."""


@cache
def _dataset_class(task: str) -> tuple[Any, Any]:
    """Configuration and dataset class of a task. The whole package takes a second to import, so it comes late."""
    importlib.import_module("reasoning_gym")
    dataset_class, config_class = importlib.import_module("reasoning_gym.factory").DATASETS[task]
    return config_class, dataset_class


def _dataset(task: str, seed: int, options: Mapping[str, Any] | None = None) -> Any:
    if options is None and task not in TASKS:
        raise DataError(f"unknown reasoning task {task!r}; there are {', '.join(TASKS)}")
    try:
        config_class, dataset_class = _dataset_class(task)
    except KeyError:
        raise DataError(f"reasoning-gym has no task {task!r}") from None
    try:
        config = config_class(seed=seed, size=2**31 - 1, **(TASKS[task].options if options is None else options))
        return dataset_class(config)
    except (AssertionError, TypeError, ValueError) as error:
        raise DataError(f"reasoning task {task!r} does not take {options}: {error}") from None


@cache
def _verifier(task: str) -> Any:
    """A dataset of the task whose `score_answer` is used; making one can read word lists from disk."""
    return _dataset(task, 0, None if task in TASKS else {})


def is_held_out(question: str) -> bool:
    """Whether a question belongs to the held-out eighth; a pure function of its text."""
    return hashlib.sha256(question.encode()).digest()[0] % 8 == 0


def generate_problems(
    task: str, count: int, seed: int, *, held_out: bool, options: Mapping[str, Any] | None = None
) -> Iterator[Problem]:
    """Distinct problems of a task, all held out or none; the same seed gives the same problems.

    Gives fewer than `count` where the task has no more.

    Args:
        task: One of `TASKS`, or with `options` any task of `reasoning-gym`.
        count: Problems at most.
        seed: Of the draws.
        held_out: Whether to give those for evaluation.
        options: Difficulty as the task names it, in the place of what `TASKS` says.

    Raises:
        DataError: The task is unknown or does not take the options.
    """
    dataset = _dataset(task, seed, options)
    seen: set[str] = set()
    index, last_new = -1, 0
    while len(seen) < count and index - last_new < MAX_VAIN_DRAWS:
        index += 1
        entry = dataset[index]
        question = str(entry["question"])
        if question in seen or is_held_out(question) != held_out:
            continue
        last_new = index
        seen.add(question)
        plain = json.loads(json.dumps(entry, default=str))
        yield Problem(f"{task}/{seed}/{index}", task, question, str(entry["answer"]), plain)


def solve(problem: Problem) -> Solution | None:
    """Our solver's solution, or None if the verifier does not accept its answer."""
    solution = TASKS[problem.task].solve(problem.question)
    return solution if score(problem, solution.answer) == 1.0 else None


def score(problem: Problem, answer: str) -> float:
    """The verifier's score of an answer, in [0, 1]. Never raises: what cannot be read scores 0."""
    if len(answer) > MAX_ANSWER_CHARS:
        return 0.0
    try:
        return float(min(1.0, max(0.0, _verifier(problem.task).score_answer(answer, problem.entry))))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError):
        return 0.0
    except (RecursionError, SyntaxError):
        return 0.0


def to_messages(question: str, solution: Solution) -> list[dict[str, Any]]:
    """The problem as a conversation with thinking."""
    answer = {"role": "assistant", "reasoning_content": solution.steps, "content": solution.answer}
    return [{"role": "user", "content": question}, answer]


def to_text(problem: Problem, solution: Solution) -> str:
    """The problem as running text."""
    return f"Question: {problem.question}\n{solution.steps}\nAnswer: {solution.answer}\n"
