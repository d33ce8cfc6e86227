"""Reasoning problems whose answers a program verifies: one question, one answer."""

from collections.abc import Sequence
from itertools import cycle, islice

from glmcore.chat import Message
from glmcore.data.reasoning import Problem, generate_problems, score
from glmcore.envs.config import ReasoningGymConfig
from glmcore.envs.protocol import Split, Start, StepResult
from glmcore.errors import DataError, RequestError


class ReasoningEnv:
    """One problem. The reward is 1 if the verifier fully accepts the answer, else 0."""

    answers_at_once = True

    def __init__(self) -> None:
        self._problem: Problem | None = None

    async def reset(self, task: Problem) -> Start:
        """Pose the problem."""
        self._problem = task
        return Start([{"role": "user", "content": task.question}])

    async def step(self, message: Message) -> StepResult:
        """Verify the answer: the content after the thinking, exactly.

        Raises:
            RequestError: There was no `reset`.
        """
        if self._problem is None:
            raise RequestError("reset the environment before the first step")
        right = message.finished_thinking and score(self._problem, message.content) == 1.0
        return StepResult(reward=float(right), done=True)

    async def close(self) -> None:
        """Nothing is held."""

    @staticmethod
    def tasks(split: Split, names: Sequence[str], count: int, seed: int) -> list[Problem]:
        """`count` problems, the tasks in turn. Where a task has too few distinct ones they come again.

        Raises:
            DataError: A task is unknown.
        """
        return ReasoningFamily(ReasoningGymConfig(), names).tasks(split, count, seed)


class ReasoningFamily:
    """Generators of `reasoning-gym`, in turn.

    Args:
        config: Difficulties.
        names: The generators; those without `options` are of `glmcore.data.reasoning.TASKS`.
    """

    def __init__(self, config: ReasoningGymConfig, names: Sequence[str]) -> None:
        self._options = config.options
        self._names = list(names)

    def tasks(self, split: Split, count: int, seed: int) -> list[Problem]:
        """`count` problems; where a generator has too few distinct ones they come again.

        Raises:
            DataError: A generator is unknown, does not take its options or has no problem.
        """
        share = -(-count // len(self._names))
        by_name = [self._problems(name, share, seed, split) for name in self._names]
        return [problem for turn in zip(*by_name, strict=True) for problem in turn][:count]

    def _problems(self, name: str, count: int, seed: int, split: Split) -> list[Problem]:
        options = self._options.get(name)
        found = list(generate_problems(name, count, seed, held_out=split == "held_out", options=options))
        if not found:
            raise DataError(f"reasoning task {name!r} has no {split} problem")
        return list(islice(cycle(found), count))

    def new(self) -> ReasoningEnv:
        """The environment of one more episode."""
        return ReasoningEnv()

    def close(self) -> None:
        """Nothing is held."""
