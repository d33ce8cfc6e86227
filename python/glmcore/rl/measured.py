"""Engines and environments that tell a timeline when they are at work."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from glmcore.chat import Message
from glmcore.engine.protocol import PolicyEngine
from glmcore.engine.request import Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.envs.protocol import Environment, Start, StepResult, Task
from glmcore.fp8.bucket import Bucket
from glmcore.rl.timeline import Timeline

ENVIRONMENT, ENGINE, TRAINER = "environments", "engine", "trainer"


class MeasuredEnvironment:
    """An environment whose work is in the timeline."""

    def __init__(self, environment: Environment[Any], timeline: Timeline) -> None:
        self._environment = environment
        self._timeline = timeline
        self.answers_at_once: bool = getattr(environment, "answers_at_once", False)
        """See `Environment`."""

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


class MeasuredEngine:
    """A `PolicyEngine` that is at work, in the timeline, as long as anybody waits for it."""

    def __init__(self, engine: PolicyEngine, timeline: Timeline) -> None:
        self._engine = engine
        self._timeline = timeline
        self._asked = 0
        self._work: AbstractContextManager[None] | None = None
        self.num_tokens = 0
        """Tokens drawn so far, of requests that have ended."""

    @property
    def policy_version(self) -> int:
        """See `PolicyEngine.policy_version`."""
        return self._engine.policy_version

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, priority: int = 0
    ) -> list[Generation]:
        """See `PolicyEngine.generate`."""
        if self._asked == 0:
            self._work = self._timeline.busy(ENGINE, "generate")
            self._work.__enter__()
        self._asked += 1
        try:
            found = await self._engine.generate(prompt_ids, params, priority=priority)
        finally:
            self._asked -= 1
            if self._asked == 0 and self._work is not None:
                self._work.__exit__(None, None, None)
        self.num_tokens += sum(len(generation.token_ids) for generation in found)
        return found

    async def update_weights(self, version: int, buckets: Iterable[Bucket]) -> str:
        """See `PolicyEngine.update_weights`."""
        with self._timeline.busy(ENGINE, f"load version {version}"):
            return await self._engine.update_weights(version, buckets)

    async def pause(self) -> None:
        """See `PolicyEngine.pause`."""
        await self._engine.pause()

    async def resume(self) -> None:
        """See `PolicyEngine.resume`."""
        await self._engine.resume()

    async def abort_all(self) -> list[Generation]:
        """See `PolicyEngine.abort_all`."""
        return await self._engine.abort_all()
