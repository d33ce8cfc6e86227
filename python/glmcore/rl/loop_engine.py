"""An engine in the event loop of those who ask it: no other thread, and no message to one, for an answer."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from glmcore.engine.engine import Engine
from glmcore.engine.request import Delta, Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.fp8.bucket import Bucket


@dataclass
class _Asked:
    """A request that has not ended."""

    answer: "asyncio.Future[list[Generation]]"
    choices: list[Generation] = field(default_factory=list[Generation])


class LoopEngine:
    """A `PolicyEngine` whose steps take turns with the tasks of one event loop.

    Whoever can ask asks before the next step, so rollouts whose environments answer together are decoded together. A
    task never waits longer than a step. Servers, whose callers come from other threads, have `EngineService`.

    Args:
        engine: Not to be used by anybody else from now on.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._asked: dict[int, _Asked] = {}
        self._paused = self._is_due = False

    @property
    def policy_version(self) -> int:
        """See `PolicyEngine.policy_version`."""
        return self.engine.policy_version

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, priority: int = 0
    ) -> list[Generation]:
        """See `PolicyEngine.generate`. Cancelling the task aborts the request."""
        self.engine.check_whole()
        number = self.engine.add(prompt_ids, params, priority=priority, whole=True)
        asked = _Asked(asyncio.get_running_loop().create_future(), [Generation() for _ in range(params.n)])
        self._asked[number] = asked
        self._step_soon()
        try:
            return await asked.answer
        finally:
            if self._asked.pop(number, None) is not None:  # nobody waits any more
                self.engine.abort(number)

    async def update_weights(self, version: int, buckets: Iterable[Bucket]) -> str:
        """See `PolicyEngine.update_weights`."""
        return self.engine.update_weights(version, buckets)

    async def pause(self) -> None:
        """See `PolicyEngine.pause`."""
        self._paused = True

    async def resume(self) -> None:
        """See `PolicyEngine.resume`."""
        self._paused = False
        self._step_soon()

    async def abort_all(self) -> list[Generation]:
        """See `PolicyEngine.abort_all`."""
        asked = list(self._asked.items())
        for number, _ in asked:
            self.engine.abort(number)
        self._hand_out(self.engine.take_aborted())
        return [choice for _, request in asked for choice in request.choices]

    def _step_soon(self) -> None:
        if not (self._is_due or self._paused) and self.engine.has_work:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        self._is_due = False
        if self._paused:
            return
        try:
            self._hand_out(self.engine.step())
        except Exception as error:  # an engine that fails fails all who wait for it, not this callback
            asked, self._asked = self._asked, {}
            for number, request in asked.items():
                self.engine.abort(number)
                if not request.answer.done():
                    request.answer.set_exception(error)
            return
        self._step_soon()

    def _hand_out(self, deltas: Iterable[tuple[int, Delta]]) -> None:
        ended: set[int] = set()
        for number, delta in deltas:
            if (asked := self._asked.get(number)) is not None:
                asked.choices[delta.index].add(delta)
                ended.add(number)
        for number in ended.difference(self.engine.unfinished):
            asked = self._asked.pop(number)
            if not asked.answer.done():
                asked.answer.set_result(asked.choices)
