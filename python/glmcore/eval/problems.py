"""Problems whose answers a program verifies, from `reasoning-gym`, HumanEval or a user's JSON lines."""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from glmcore.data.reasoning import TASKS, generate_problems
from glmcore.envs.human_eval import read_human_eval
from glmcore.envs.verify.choice import LETTERS, pose_choice
from glmcore.envs.verify.code import LANGUAGES
from glmcore.errors import DataError

Kind = Literal["reasoning", "math", "choice", "code"]
FILE_KINDS = ("math", "choice", "code")
_MATH_INSTRUCTION = "Put the final answer into \\boxed{}."
_CODE_INSTRUCTION = "Answer with the whole program in one fenced code block."
_FUNCTION_INSTRUCTION = "Answer with the whole function, its imports included, in one fenced Python block."


@dataclass(frozen=True)
class EvalProblem:
    """One question."""

    id: str
    """Its name, unlike all others of the evaluation."""
    suite: str
    category: str
    """Within the suite; the suite's name where there is only one."""
    kind: Kind
    question: str
    """What the model is asked, word for word."""
    judge: Mapping[str, Any]
    """What its judge needs, plain JSON."""


def digest(problems: Sequence[EvalProblem]) -> str:
    """SHA-256 of a set of problems, whatever their order."""
    lines = sorted(json.dumps(asdict(problem), sort_keys=True) for problem in problems)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def load_suites(names: Sequence[str], *, limit: int | None, seed: int) -> list[EvalProblem]:
    """The problems of all suites.

    Args:
        names: `reasoning-gym:TASK,TASK` for held-out problems of these generators; `humaneval`; `math:FILE`,
            `choice:FILE` or `code:FILE` for JSON lines.
        limit: Most problems of each suite, and of each generator; None for all of a file and 100 of a generator.
        seed: Draws problems of generators and the order of options.

    Raises:
        DataError: A suite is unknown, a file cannot be read, or a line has not what its kind needs; it is named.
    """
    if len(set(names)) < len(names):
        raise DataError(f"a suite is named twice: {' '.join(names)}")
    problems: list[EvalProblem] = []
    for name in names:
        found = list(_suite(name, limit, seed))
        if not found:
            raise DataError(f"suite {name!r} has no problem")
        problems += found
    return problems


def _suite(name: str, limit: int | None, seed: int) -> Iterator[EvalProblem]:
    kind, _, rest = name.partition(":")
    if kind == "reasoning-gym" and rest:
        for task in rest.split(","):
            yield from _reasoning(task, limit or 100, seed)
    elif name == "humaneval":
        yield from _limited(_humaneval(), limit)
    elif kind in FILE_KINDS and rest:
        yield from _limited(_from_file(kind, Path(rest), seed), limit)
    else:
        raise DataError(
            f"unknown suite {name!r}: give reasoning-gym:TASK,..., humaneval, math:FILE, choice:FILE or code:FILE"
        )


def _limited(problems: Iterator[EvalProblem], limit: int | None) -> Iterator[EvalProblem]:
    for number, problem in enumerate(problems):
        if limit is not None and number >= limit:
            return
        yield problem


def _reasoning(task: str, count: int, seed: int) -> Iterator[EvalProblem]:
    options = None if task in TASKS else {}
    for problem in generate_problems(task, count, seed, held_out=True, options=options):
        judge = {"task": task, "answer": problem.answer, "entry": problem.entry}
        yield EvalProblem(problem.id, "reasoning-gym", task, "reasoning", problem.question, judge)


def _humaneval() -> Iterator[EvalProblem]:
    for name, item in ((problem.id, problem.data) for problem in read_human_eval()):
        question = f"Complete this Python function.\n\n```python\n{item['prompt']}```\n\n{_FUNCTION_INSTRUCTION}"
        test = {"entry_point": item["entry_point"], "source": item["test"], "setup": item["prompt"]}
        yield EvalProblem(name, "humaneval", "humaneval", "code", question, {"language": "python", "assertions": test})


def _from_file(kind: str, path: Path, seed: int) -> Iterator[EvalProblem]:
    make = {"math": _math, "choice": _choice, "code": _code}[kind]
    suite = f"{kind}:{path.name}"
    seen: set[str] = set()
    for number, item in _lines(path):
        place = f"{path}:{number}"
        try:
            name = str(item.get("id", item.get("task_id", f"{path.stem}/{number}")))
            problem = make(item, int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big"))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{place}: not a problem of kind {kind}: {_words(error)}") from None
        if name in seen:
            raise DataError(f"{place}: there is another problem with the id {name!r}")
        seen.add(name)
        category = str(item.get("category", item.get("subject", item.get("High-level domain", suite))))
        yield replace(problem, id=f"{suite}/{name}", suite=suite, category=category)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError:
            item = None
        if not isinstance(item, dict):
            raise DataError(f"{path}:{number}: not a JSON object")
        yield number, item


def _words(error: Exception) -> str:
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def _first(item: dict[str, Any], *keys: str) -> Any:
    for key in keys:
        if item.get(key) is not None:
            return item[key]
    raise KeyError(" or ".join(repr(key) for key in keys))


def _math(item: dict[str, Any], seed: int) -> EvalProblem:
    question = f"{_first(item, 'question', 'problem')}\n\n{_MATH_INSTRUCTION}"
    return EvalProblem("", "", "", "math", question, {"answer": str(_first(item, "answer"))})


def _choice(item: dict[str, Any], seed: int) -> EvalProblem:
    if "Incorrect Answer 1" in item:  # as GPQA's columns are called
        wrong = [str(item[f"Incorrect Answer {number}"]) for number in (1, 2, 3)]
        options, right = [str(item["Correct Answer"]), *wrong], 0
    else:
        options = [str(option) for option in _first(item, "options", "choices")]
        right = _place(_first(item, "answer"), options)
    choice = pose_choice(str(_first(item, "question", "Question")), options, right, seed)
    return EvalProblem("", "", "", "choice", choice.text, {"letter": choice.letter, "num_options": len(options)})


def _place(answer: Any, options: list[str]) -> int:
    """The place of the right option, given as a number from 0, a letter, or its text."""
    if isinstance(answer, int):
        return answer
    if answer in options:
        return options.index(answer)
    if isinstance(answer, str) and len(answer) == 1 and answer in LETTERS[: len(options)]:
        return LETTERS.index(answer)
    raise ValueError(f"answer {answer!r} is no option")


def _code(item: dict[str, Any], seed: int) -> EvalProblem:
    question = str(_first(item, "question", "prompt", "text"))
    language = str(item.get("language", "python"))
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r} is none of {', '.join(LANGUAGES)}")
    if "tests" in item:
        streams = [[str(test["stdin"]), str(test["stdout"])] for test in item["tests"]]
        if not streams:
            raise ValueError("tests is empty")
        judge: dict[str, Any] = {"language": language, "streams": streams}
        return EvalProblem("", "", "", "code", f"{question}\n\n{_CODE_INSTRUCTION}", judge)
    source = "\n".join(item["test_list"]) if "test_list" in item else str(_first(item, "test", "tests"))
    entry_point = str(item.get("entry_point") or _called_in(source))
    test = {"entry_point": entry_point, "source": source, "setup": str(item.get("setup", ""))}
    question = f"{question}\n\nThe function is called `{entry_point}`. {_FUNCTION_INSTRUCTION}"
    return EvalProblem("", "", "", "code", question, {"language": "python", "assertions": test})


def _called_in(source: str) -> str:
    """The function that the first assertion calls."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"the test is no Python: {error.msg}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            for part in ast.walk(node.test):
                if isinstance(part, ast.Call) and isinstance(part.func, ast.Name):
                    return part.func.id
    raise ValueError("entry_point is missing and no assertion calls a function")
