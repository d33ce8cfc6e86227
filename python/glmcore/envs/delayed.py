"""Reasoning problems whose judgement takes a while: to study training under slow and unevenly slow environments."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from glmcore.chat import Message
from glmcore.data.reasoning import Problem, is_held_out
from glmcore.envs.config import ReasoningGymConfig
from glmcore.envs.protocol import Split, Start, StepResult
from glmcore.envs.reasoning import ReasoningEnv, ReasoningFamily
from glmcore.errors import ConfigError

OPTIONS = {"scale_s": 0.02, "shape": 1.2, "cap_s": 1.0}
"""Delay in seconds: Pareto of this least value and shape (smaller has a heavier tail), cut at the cap."""


class DelayedFamily:
    """Problems of `ReasoningFamily`; the n-th attempt at a task takes the same time whoever makes it.

    Held-out problems are judged at once, so that evaluations cost all ways to train the same.

    Args:
        options: Those of `OPTIONS` that are to be otherwise.
        names: Generators of `reasoning-gym`.

    Raises:
        ConfigError: There is no such option.
    """

    def __init__(self, options: dict[str, Any], names: Sequence[str]) -> None:
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise ConfigError(f"unknown options {unknown} of the delayed environment; there are {', '.join(OPTIONS)}")
        self.options: dict[str, float] = OPTIONS | options
        self.attempts: dict[str, int] = {}
        self._inner = ReasoningFamily(ReasoningGymConfig(), names)

    def tasks(self, split: Split, count: int, seed: int) -> list[Problem]:
        """See `ReasoningFamily.tasks`."""
        return self._inner.tasks(split, count, seed)

    def new(self) -> "DelayedEnv":
        """The environment of one more episode."""
        return DelayedEnv(self)

    def close(self) -> None:
        """Nothing is held."""

    def delay(self, task_id: str, attempt: int) -> float:
        """Seconds that an attempt takes, counted from 0."""
        random = np.random.default_rng([*task_id.encode(), attempt])
        return min(self.options["cap_s"], self.options["scale_s"] * (1.0 + random.pareto(self.options["shape"])))


class DelayedEnv(ReasoningEnv):
    """One problem, judged after its delay."""

    answers_at_once = False

    def __init__(self, family: DelayedFamily) -> None:
        super().__init__()
        self._family = family
        self._delay = 0.0

    async def reset(self, task: Problem) -> Start:
        """Pose the problem."""
        if not is_held_out(task.question):
            attempt = self._family.attempts.get(task.id, 0)
            self._family.attempts[task.id] = attempt + 1
            self._delay = self._family.delay(task.id, attempt)
        return await super().reset(task)

    async def step(self, message: Message) -> StepResult:
        """Verify the answer, after a while."""
        await asyncio.sleep(self._delay)
        return await super().step(message)
