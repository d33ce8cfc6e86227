"""Two buffers and a thread: while one is consumed, the next is filled."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from glmcore.errors import SyncError
from glmcore.fp8.bucket import Bucket

_GRACE_S = 5.0
"""How long a thread may take to notice that nobody wants more."""

T = TypeVar("T")
TakeBuffer = Callable[[], T]
Produce = Callable[[TakeBuffer[T], Callable[[str], None]], Iterator[Bucket]]
"""Makes buckets: takes a buffer for each, fills it, and tells what it is at."""


class _Unwanted(Exception):  # noqa: N818 (never leaves this file)
    """The consumer has gone."""


class Pipeline(Generic[T]):
    """Buckets made in a background thread, to be consumed by one loop, once.

    A bucket's bytes are good until the next one is asked for.
    """

    def __init__(self, produce: Produce[T], buffers: list[T], timeout_s: float, what: str) -> None:
        """Start.

        Args:
            produce: Runs in the thread.
            buffers: The memory that buckets live in.
            timeout_s: For all buckets together, consuming them included.
            what: Names the work in errors.
        """
        self._doing = "nothing had been made"
        self.what = what
        self.timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._free: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[Bucket, T] | BaseException | None] = queue.SimpleQueue()
        for buffer in buffers:
            self._free.put(buffer)
        self._thread = threading.Thread(target=self._run, args=(produce,), name=what, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Bucket]:
        """The buckets.

        Raises:
            SyncError: They were not there, or not consumed, in time.
        """
        try:
            while True:
                try:
                    item = self._ready.get(timeout=max(self._deadline - time.monotonic(), 0))
                except queue.Empty:
                    raise self._late(self._doing) from None
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    return
                yield item[0]
                self._free.put(item[1])
                if time.monotonic() > self._deadline:
                    raise self._late(f"bucket {item[0].index} was being received")
        finally:
            self.close()

    def close(self) -> bool:
        """Tell the thread to end; whether it did, so that the buffers are free again."""
        self._free.put(None)
        self._thread.join(_GRACE_S)
        return not self._thread.is_alive()

    def _late(self, doing: str) -> SyncError:
        return SyncError(f"{self.what} took longer than {self.timeout_s:g} s; {doing}")

    def _run(self, produce: Produce[T]) -> None:
        taken: list[T] = []

        def take() -> T:
            buffer = self._free.get()
            if buffer is None:
                raise _Unwanted
            taken.append(buffer)
            return buffer

        def tell(doing: str) -> None:
            self._doing = doing

        try:
            for bucket in produce(take, tell):
                self._ready.put((bucket, taken.pop()))
            self._ready.put(None)
        except _Unwanted:
            pass
        except BaseException as error:  # whatever it is, the consumer must hear of it
            self._ready.put(error)
