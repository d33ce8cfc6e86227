"""Engines and environments that tell a timeline when they are at work."""

from typing import Any

from glmcore.chat import Message
from glmcore.envs.protocol import Environment, Start, StepResult, Task
from glmcore.rl.timeline import Timeline

ENVIRONMENT, ENGINE, TRAINER = "environments", "engine", "trainer"


class MeasuredEnvironment:
    """An environment whose work is in the timeline."""

    def __init__(self, environment: Environment[Any], timeline: Timeline) -> None:
        self._environment = environment
        self._timeline = timeline

    async def reset(self, task: Task) -> Start:
        """See `Environment.reset`."""
        with self._timeline.busy(ENVIRONMENT, "reset"):
            return await self._environment.reset(task)

    async def step(self, message: Message) -> StepResult:
        """See `Environment.step`."""
        with self._timeline.busy(ENVIRONMENT, "step"):
            return await self._environment.step(message)

    async def close(self) -> None:
        """See `Environment.close`."""
        await self._environment.close()
