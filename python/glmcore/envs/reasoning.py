"""Reasoning problems whose answers a program verifies: one question, one answer."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any, Literal

from glmcore.chat import Message
from glmcore.data.reasoning import Problem, generate_problems, score
from glmcore.envs.protocol import StepResult
from glmcore.errors import RequestError


class ReasoningEnv:
    """One problem. The reward is 1 if the verifier fully accepts the answer, else 0."""

    def __init__(self) -> None:
        self._problem: Problem | None = None

    async def reset(self, task: Problem) -> Sequence[dict[str, Any]]:
        """Pose the problem."""
        self._problem = task
        return [{"role": "user", "content": task.question}]

    async def step(self, message: Message) -> StepResult:
        """Verify the answer: the content after the thinking, exactly.

        Raises:
            RequestError: There was no `reset`.
        """
        if self._problem is None:
            raise RequestError("reset the environment before the first step")
        right = message.finished_thinking and score(self._problem, message.content) == 1.0
        return StepResult(observations=(), reward=float(right), done=True)

    @staticmethod
    def tasks(split: Literal["train", "held_out"], names: Sequence[str], count: int, seed: int) -> list[Problem]:
        """`count` problems, the tasks in turn. Where a task has too few distinct ones they come again.

        Raises:
            DataError: A task is unknown.
        """
        share = -(-count // len(names))
        by_task = [cycle(list(generate_problems(name, share, seed, held_out=split == "held_out"))) for name in names]
        return [next(by_task[index % len(names)]) for index in range(count)]
