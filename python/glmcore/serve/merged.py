"""Several requests to the engine as one stream."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from glmcore.engine.request import Delta
from glmcore.engine.sampling import SamplingParams
from glmcore.serve.admission import AdmittedStream
from glmcore.serve.conversations import Conversations
from glmcore.serve.errors import ServeError


class MergedStreams:
    """The deltas of all streams as they come, each with the number of its stream.

    Args:
        streams: Requests that have been taken on.
    """

    def __init__(self, streams: Sequence[AdmittedStream]) -> None:
        self._streams = streams
        self._tasks: list[asyncio.Task[None]] = []
        self._queue: asyncio.Queue[tuple[int, Delta | BaseException | None]] = asyncio.Queue()

    @classmethod
    def start(
        cls, conversations: Conversations, requests: Sequence[tuple[Sequence[int], SamplingParams]], *, priority: int
    ) -> "MergedStreams":
        """Take all requests on, or none.

        Raises:
            ServeError: One cannot be taken on.
        """
        streams: list[AdmittedStream] = []
        try:
            for prompt, params in requests:
                streams.append(conversations.generate(prompt, params, priority=priority))
        except ServeError:
            for stream in streams:
                stream.give_up()
            raise
        return cls(streams)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        self._tasks = [asyncio.ensure_future(self._read(at)) for at in range(len(self._streams))]
        running = len(self._tasks)
        while running:
            at, told = await self._queue.get()
            if told is None:
                running -= 1
            elif isinstance(told, BaseException):
                raise told
            else:
                yield at, told

    async def aclose(self) -> None:
        """Abort what is still running."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in self._streams:
            await stream.aclose()

    async def _read(self, at: int) -> None:
        try:
            async for delta in self._streams[at]:
                self._queue.put_nowait((at, delta))
        except Exception as error:  # told to the reader, who raises it
            self._queue.put_nowait((at, error))
        else:
            self._queue.put_nowait((at, None))
