"""How many answers a server takes on at a time."""

from collections.abc import AsyncIterator
from typing import Any

from glmcore.engine.request import Delta
from glmcore.errors import QueueFullError, RequestError
from glmcore.serve.caller import CALLER
from glmcore.serve.errors import ServeError, bad_request, overloaded
from glmcore.serve.metrics import Metrics, StreamMeter


class Admission:
    """A bounded number of answers in flight, the waiting ones included.

    Args:
        max_sequences: Bound.
        retry_after_s: What a refused client is told to wait.
    """

    def __init__(self, max_sequences: int, retry_after_s: float = 1.0) -> None:
        self.max_sequences = max_sequences
        self.in_flight = 0
        self.retry_after_s = retry_after_s

    def take(self, count: int) -> None:
        """Take on `count` answers.

        Raises:
            ServeError: There would be more than the bound.
        """
        if self.in_flight + count > self.max_sequences:
            raise overloaded(self.retry_after_s)
        self.in_flight += count

    def give_back(self, count: int) -> None:
        """`count` answers have ended."""
        self.in_flight -= count


class AdmittedStream:
    """The deltas of a request that has been taken on. Ends, fails or is closed: its place is free again.

    Args:
        deltas: What the engine tells; closing it aborts the request.
        admission: Where its places were taken.
        count: How many.
        prompt_tokens: Length of the prompt.
        metrics: Where it is counted.
    """

    def __init__(
        self, deltas: AsyncIterator[Delta], admission: Admission, count: int, prompt_tokens: int, metrics: Metrics
    ) -> None:
        self._deltas: Any = deltas
        self._admission = admission
        self._count = count
        self._left = count
        """Answers that have not ended."""
        self._meter = StreamMeter(metrics, prompt_tokens)
        self._caller = CALLER.get()
        if self._caller is not None:
            self._caller.prompt_tokens += prompt_tokens

    def __aiter__(self) -> "AdmittedStream":
        return self

    async def __anext__(self) -> Delta:
        try:
            delta = await self._deltas.__anext__()
        except QueueFullError:
            self._release("failed")
            raise overloaded(self._admission.retry_after_s) from None
        except RequestError as error:
            self._release("failed")
            raise bad_request(str(error)) from None
        except BaseException as error:
            self._release("done" if isinstance(error, StopAsyncIteration) else "failed")
            raise
        if delta.finish_reason == "abort":
            raise ServeError(503, "unavailable", "the server stopped before the answer was complete")
        self._meter.saw(delta)
        self._left -= delta.finish_reason is not None
        if not self._left:
            self._release("done")
        if self._caller is not None:
            self._caller.completion_tokens += len(delta.token_ids)
            self._caller.cached_tokens += 0 if delta.index else delta.cached_tokens
        return delta

    async def aclose(self) -> None:
        """Abort what is still running."""
        await self._deltas.aclose()
        self._release("aborted")

    def give_up(self) -> None:
        """Free the places of a request that was never read, and so never begun."""
        self._release("aborted")

    def _release(self, how: str) -> None:
        self._admission.give_back(self._count)
        if self._count:
            self._meter.end(how)
        self._count = 0
