"""An engine for players that are in step: it samples when all of them wait for it, always the same batch.

What a request gets depends on rounding, and rounding on what else is in a batch. Here the batches follow from the
episodes alone, not from the time that anything takes, so the same weights and seeds give the same rollouts bit for bit.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from glmcore.engine.engine import Engine
from glmcore.engine.request import Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.errors import RequestError
from glmcore.fp8.bucket import Bucket

T = TypeVar("T")
_player: ContextVar[int] = ContextVar("player")


@dataclass
class _Request:
    player: int
    prompt_ids: Sequence[int]
    params: SamplingParams
    answer: "asyncio.Future[list[Generation]]"


class LockstepEngine:
    """A `PolicyEngine` for coroutines that `play` runs together, in one thread.

    Args:
        engine: Draws the tokens.
        on_tokens: Called after every batched step with the number of tokens of the continuations that ended with it.
    """

    def __init__(self, engine: Engine, on_tokens: Callable[[int], None] = lambda _: None) -> None:
        self.engine = engine
        self.on_tokens = on_tokens
        self._playing: set[int] = set()
        self._waiting: list[_Request] = []
        self._asking: set[int] = set()
        """Players that wait."""
        self.num_tokens = 0
        """Tokens drawn so far."""

    @property
    def policy_version(self) -> int:
        """Of the weights."""
        return self.engine.policy_version

    def play(self, episodes: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """Run episodes to their end, in an event loop of their own; gives their results in order."""

        async def together() -> list[T]:
            return list(await asyncio.gather(*[self.follow(i, episode) for i, episode in enumerate(episodes)]))

        return asyncio.run(together())

    def follow(self, player: int, episode: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """An episode that is waited for from now on: nobody is answered before it asks too, or has ended.

        Args:
            player: Its place among all, in whose order they are answered.
            episode: Whose requests come to this engine.
        """
        self._playing.add(player)
        return self._follow(player, episode)

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, priority: int = 0
    ) -> list[Generation]:
        """Wait until all players do, then continue the prompt in one batch with theirs.

        Raises:
            RequestError: The request cannot be served.
        """
        del priority  # all wait together
        answer: asyncio.Future[list[Generation]] = asyncio.get_running_loop().create_future()
        player = _player.get()
        self._waiting.append(_Request(player, prompt_ids, params, answer))
        self._asking.add(player)
        self._sample_if_all_wait()
        return await answer

    async def update_weights(self, version: int, buckets: Iterable[Bucket]) -> str:
        """See `Engine.update_weights`."""
        return self.engine.update_weights(version, buckets)

    async def pause(self) -> None:
        """Nothing is drawn while nobody plays."""

    async def resume(self) -> None:
        """See `pause`."""

    async def abort_all(self) -> list[Generation]:
        """Nothing is under way between two batches."""
        return []

    async def _follow(self, player: int, episode: Coroutine[Any, Any, T]) -> T:
        _player.set(player)
        try:
            return await episode
        finally:
            self._playing.discard(player)
            self._sample_if_all_wait()

    def _sample_if_all_wait(self) -> None:
        # Most calls end at the comparison of the sizes: every player comes by here for every answer.
        if self._waiting and len(self._asking) >= len(self._playing) and self._asking >= self._playing:
            asyncio.get_running_loop().call_soon(self._sample)

    def _sample(self) -> None:
        """Serve those who wait, in the order of the players."""
        batch = [request for request in sorted(self._waiting, key=lambda r: r.player) if not request.answer.done()]
        self._waiting.clear()
        self._asking.clear()
        if not batch:
            return
        answers: dict[int, list[Generation]] = {}
        asked: dict[int, _Request] = {}
        try:
            for request in batch:
                try:
                    number = self.engine.add(request.prompt_ids, request.params, whole=True)
                except RequestError as error:
                    request.answer.set_exception(error)
                    continue
                asked[number] = request
                answers[number] = [Generation() for _ in range(request.params.n)]
            while self.engine.has_work:
                drawn = 0
                for number, delta in self.engine.step():
                    answers[number][delta.index].add(delta)
                    drawn += len(delta.token_ids)
                self.num_tokens += drawn
                self.on_tokens(drawn)
        except Exception as error:  # an engine that fails fails all who wait for it, not this callback
            for request in asked.values():
                request.answer.set_exception(error)
            return
        for number, request in asked.items():
            request.answer.set_result(answers[number])
