"""An engine with a thread of its own, for any number of asyncio tasks."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from glmcore.engine.engine import Engine
from glmcore.engine.request import Delta, EngineStats, Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.engine.scoring import TextScores, score
from glmcore.errors import RequestError
from glmcore.fp8.bucket import Bucket

Result = TypeVar("Result")


@dataclass(eq=False)
class _Listener:
    """Who waits for the deltas of a request."""

    loop: asyncio.AbstractEventLoop
    queue: "asyncio.Queue[Delta | BaseException]" = field(default_factory=asyncio.Queue)


class EngineService:
    """Steps an engine in a thread as long as there is work, and hands out what comes. A `PolicyEngine`.

    Methods may be called from the tasks of any event loop. What changes the engine happens between two steps.

    Args:
        engine: Not to be used by anybody else from now on.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._changed = threading.Condition()
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._paused = False
        self._closed = False
        self._listeners: dict[int, _Listener] = {}
        """Of each request that has not ended; touched by the thread alone."""
        self._partial: dict[int, list[Generation]] = {}
        """What they have so far."""
        self._thread = threading.Thread(target=self._run, name="glmcore engine", daemon=True)
        self._thread.start()

    @property
    def policy_version(self) -> int:
        """Version of the weights that draw the next token."""
        return self.engine.policy_version

    def stats(self) -> EngineStats:
        """What the engine does, and what it has done."""
        return self.engine.stats()

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, priority: int = 0
    ) -> list[Generation]:
        """See `PolicyEngine.generate`. Cancelling the task aborts the request."""
        results = [Generation() for _ in range(params.n)]
        async for delta in self._listen(prompt_ids, params, priority, whole=True):
            results[delta.index].add(delta)
        return results

    def stream(self, prompt_ids: Sequence[int], params: SamplingParams, *, priority: int = 0) -> AsyncIterator[Delta]:
        """The deltas of a request as they come. Closing the iterator, or cancelling its task, aborts the request.

        Raises:
            RequestError: The request cannot be served, at the first step of the iterator; see `Engine.add`.
            SyncError: The engine's weights are a mixture.
        """
        return self._listen(prompt_ids, params, priority, whole=False)

    async def _listen(
        self, prompt_ids: Sequence[int], params: SamplingParams, priority: int, *, whole: bool
    ) -> AsyncIterator[Delta]:
        """The deltas of a request, one of each choice if they are to be whole."""
        if params.constraint is not None and self.engine.grammars is not None:
            await asyncio.to_thread(self.engine.grammars.compile, params.constraint)
        listener = _Listener(asyncio.get_running_loop())
        adding = self._submit(lambda: self._add(prompt_ids, params, priority, whole, listener))
        try:
            await asyncio.wrap_future(adding)
            left = params.n
            while left:
                delta = await listener.queue.get()
                if isinstance(delta, BaseException):
                    raise delta
                left -= delta.finish_reason is not None
                yield delta
        finally:
            # By the future, as the task can be cancelled before it knows the number.
            self._submit(lambda: self._forget(adding))

    async def score(self, prompt_ids: Sequence[int], top_logprobs: int = 0) -> TextScores:
        """How likely the model finds a text; see `glmcore.engine.scoring.score`."""
        return await self._call(lambda: score(self.engine, prompt_ids, top_logprobs))

    async def update_weights(self, version: int, buckets: Iterable[Bucket]) -> str:
        """See `PolicyEngine.update_weights`."""
        return await self._call(lambda: self.engine.update_weights(version, buckets))

    async def pause(self) -> None:
        """Draw nothing after the step that is under way, until `resume`. Requests are kept, new ones taken."""
        await self._call(lambda: self._set_paused(True))

    async def resume(self) -> None:
        """Go on after `pause`."""
        await self._call(lambda: self._set_paused(False))

    async def sleep(self) -> None:
        """Pause, and give the memory of the cache back until `wake`."""
        await self._call(lambda: (self._set_paused(True), self.engine.sleep()))

    async def wake(self) -> None:
        """Go on after `sleep`."""
        await self._call(lambda: (self.engine.wake(), self._set_paused(False)))

    async def abort_all(self) -> list[Generation]:
        """End all requests; gives what they have, which is also what their callers get, with the reason `abort`."""
        return await self._call(self._abort_all)

    async def close(self) -> None:
        """End all requests and the thread."""
        if self._closed:
            return
        await self.abort_all()
        with self._changed:
            self._closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    # In the caller's thread

    def _submit(self, command: Callable[[], Result]) -> "Future[Result]":
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                future.set_exception(RequestError("the engine is closed"))
                return future
            self._commands.append((command, future))
            self._changed.notify()
        return future

    async def _call(self, command: Callable[[], Result]) -> Result:
        return await asyncio.wrap_future(self._submit(command))

    # In the engine's thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._commands or (self.engine.has_work and not self._paused)):
                    self._changed.wait()
                if self._closed:
                    return
                commands, self._commands = self._commands, deque()
            for command, future in commands:
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    future.set_result(command())
                except BaseException as error:  # it is the caller's
                    future.set_exception(error)
            if self.engine.has_work and not self._paused:
                self._step()

    def _step(self) -> None:
        try:
            deltas = self.engine.step()
        except BaseException as error:  # every waiting task has to hear of it
            for request_id in list(self._listeners):
                self.engine.abort(request_id)
            self._tell([(request_id, error) for request_id in self._listeners])
            self._listeners.clear()
            self._partial.clear()
            return
        self._hand_out(deltas)

    def _hand_out(self, deltas: list[tuple[int, Delta]]) -> None:
        known = [(request_id, delta) for request_id, delta in deltas if request_id in self._listeners]
        self._tell(known)
        for request_id, delta in known:
            self._partial[request_id][delta.index].add(delta)
        for request_id in {request_id for request_id, delta in known if delta.finish_reason}:
            if request_id not in self.engine.unfinished:
                del self._listeners[request_id], self._partial[request_id]

    def _tell(self, news: Sequence[tuple[int, Delta | BaseException]]) -> None:
        """Put news into the queues of their listeners, with one call into each event loop."""
        of_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Listener, Delta | BaseException]]] = {}
        for request_id, delta in news:
            listener = self._listeners[request_id]
            of_loop.setdefault(listener.loop, []).append((listener, delta))
        for loop, entries in of_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_deliver, entries)

    def _add(
        self, prompt_ids: Sequence[int], params: SamplingParams, priority: int, whole: bool, listener: _Listener
    ) -> int:
        request_id = self.engine.add(prompt_ids, params, priority=priority, whole=whole)
        self._listeners[request_id] = listener
        self._partial[request_id] = [Generation() for _ in range(params.n)]
        return request_id

    def _forget(self, adding: "Future[int]") -> None:
        """The listener has gone: if its request goes on, nobody wants it."""
        if adding.cancelled() or adding.exception() is not None:
            return
        self.engine.abort(adding.result())
        self._listeners.pop(adding.result(), None)
        self._partial.pop(adding.result(), None)

    def _abort_all(self) -> list[Generation]:
        partial = [generation for choices in self._partial.values() for generation in choices]
        for request_id in list(self._listeners):
            self.engine.abort(request_id)
        self._hand_out(self.engine.take_aborted())
        return partial

    def _set_paused(self, paused: bool) -> None:
        self._paused = paused


def _deliver(entries: list[tuple[_Listener, Delta | BaseException]]) -> None:
    for listener, delta in entries:
        listener.queue.put_nowait(delta)
