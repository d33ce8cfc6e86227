"""Judging answers, each kind by its verifier."""

import asyncio
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from typing_extensions import Self

from glmcore.chat import Message
from glmcore.data.reasoning import Problem, score
from glmcore.envs.sandbox.config import SandboxConfig
from glmcore.envs.sandbox.pool import SandboxPool
from glmcore.envs.verify.choice import verify_choice
from glmcore.envs.verify.code import AssertionTest, CodeVerifier, StreamTest, extract_code
from glmcore.envs.verify.math import MathVerifier
from glmcore.envs.verify.verdict import Verdict
from glmcore.eval.problems import EvalProblem, Kind

_OPEN, _CLOSE = "<answer>", "</answer>"


class Judges:
    """The verifiers that some problems need; use in a `with` block.

    Args:
        kinds: Of the problems.
        sandbox: How model-written programs are shut in.
        num_workers: Answers judged at a time.

    Raises:
        VerifierError: `math-verify` is needed and not installed.
        SandboxError: Programs are to be run and sandboxes of that kind do not work here.
    """

    def __init__(self, kinds: set[Kind], sandbox: SandboxConfig, num_workers: int = 2) -> None:
        self._stack = ExitStack()
        self._maths: MathVerifier | None = None
        self._code: CodeVerifier | None = None
        self._turn = asyncio.Semaphore(num_workers)
        if "math" in kinds:
            self._maths = self._stack.enter_context(MathVerifier(num_workers))
        if "code" in kinds:
            self._code = CodeVerifier(self._stack.enter_context(SandboxPool(sandbox)))

    async def judge(self, problem: EvalProblem, message: Message) -> Verdict:
        """The verdict on an answer: on its content, after the thinking. One that did not finish thinking is wrong."""
        if not message.finished_thinking:
            return Verdict(0.0, None, "the thinking did not end")
        async with self._turn:
            return await self._judge(problem, message.content)

    async def _judge(self, problem: EvalProblem, content: str) -> Verdict:
        judge = problem.judge
        if problem.kind == "choice":
            return verify_choice(judge["letter"], content, judge["num_options"])
        if problem.kind == "math":
            assert self._maths is not None, "the kinds were told"
            return await self._maths.verify_async(judge["answer"], content)
        if problem.kind == "code":
            return await self._judge_code(judge, content)
        return await asyncio.to_thread(_judge_reasoning, problem, content)

    async def _judge_code(self, judge: Any, content: str) -> Verdict:
        assert self._code is not None, "the kinds were told"
        code = extract_code(content, judge["language"])
        if "streams" in judge:
            tests = [StreamTest(stdin, stdout) for stdin, stdout in judge["streams"]]
            return await self._code.verify_streams_async(code, tests, judge["language"])
        return await self._code.verify_assertions_async(code, AssertionTest(**judge["assertions"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _judge_reasoning(problem: EvalProblem, content: str) -> Verdict:
    """By the generator's own verifier: what stands between answer tags, as its authors ask for; else all of it."""
    answer = content.strip()
    if _OPEN in answer:
        answer = answer.rpartition(_OPEN)[2].partition(_CLOSE)[0].strip()
    judge = problem.judge
    right = score(Problem(problem.id, judge["task"], problem.question, judge["answer"], judge["entry"]), answer)
    return Verdict(1.0, answer) if right == 1.0 else Verdict(0.0, answer, "not fully accepted by the task's verifier")
