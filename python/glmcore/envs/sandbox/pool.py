"""Sandboxes that stand ready: the next program begins at once, and its sandbox is replaced behind it."""

import asyncio
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from glmcore.envs.sandbox.config import SandboxConfig
from glmcore.envs.sandbox.job import Job
from glmcore.envs.sandbox.limits import SandboxResult
from glmcore.envs.sandbox.sandbox import Sandbox, new_sandbox


class SandboxPool:
    """Runs programs, each in a sandbox that nothing ran in before; from any thread or event loop.

    Use it in a `with` block, which ends what stands ready.

    Args:
        config: Kind and bounds, and how many stand ready.

    Raises:
        SandboxError: Sandboxes of that kind do not work on this machine; told at once, not at the first program.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config
        self._lock = threading.Lock()
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="glmcore-sandbox")
        first: Future[Sandbox] = Future()
        first.set_result(new_sandbox(config))
        self._ready = deque([first, *(self._starter.submit(new_sandbox, config) for _ in range(config.warm - 1))])
        self._closed = False

    def run(self, job: Job) -> SandboxResult:
        """Run one program; blocks until nothing of it is left.

        Raises:
            SandboxError: A sandbox could not be started.
            RuntimeError: The pool is closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool of sandboxes is closed")
            self._ready.append(self._starter.submit(new_sandbox, self.config))
            waiting = self._ready.popleft()
        return waiting.result().run(job)

    async def run_async(self, job: Job) -> SandboxResult:
        """`run` for an event loop, in a thread of its own."""
        return await asyncio.to_thread(self.run, job)

    def close(self) -> None:
        """End the sandboxes that stand ready; what runs goes on to its end."""
        with self._lock:
            self._closed = True
        self._starter.shutdown(cancel_futures=True)
        for waiting in self._ready:
            if not waiting.cancelled() and waiting.exception() is None:
                waiting.result().close()
        self._ready.clear()

    def __enter__(self) -> "SandboxPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
