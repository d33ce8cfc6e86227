"""Who works on the parts: processes of this machine, or a Ray cluster.

Processes, not threads: reading, parsing and cleaning hold Python's lock, so threads would share one core. They are
spawned, not forked: the parent may have threads (pyarrow's, the tokenizer's), and a fork copies their locks, not them.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, Literal, TypeVar

from glmcore.errors import RunError

Engine = Literal["local", "ray"]
Job = TypeVar("Job")
Done = Callable[[int, dict[str, Any]], None]
"""Takes the position of a finished job and its record."""
BYTES_PER_WORKER = 16 << 20
"""Less input than this is not worth the half second of a core that a process takes to start."""


class Workers:
    """Who works, for the time of a `with` block: processes start when they are first needed, and serve all passes.

    An error or Ctrl-C ends all of them at once: what they were at is done again by the next call.
    """

    def __init__(self, num_threads: int, engine: Engine) -> None:
        """Begin with none.

        Args:
            num_threads: Processes at most.
            engine: Where they are.
        """
        self._num_threads = num_threads
        self._engine = engine
        self._pool: ProcessPoolExecutor | None = None
        self._others = set(multiprocessing.active_children())
        self._ray: Any = None

    def number(self, num_jobs: int, num_bytes: int) -> int:
        """Processes for so many jobs over so much input; 1 is this one alone."""
        return max(1, min(self._num_threads, num_jobs, num_bytes // BYTES_PER_WORKER))

    def run(self, work: Callable[[Job], dict[str, Any]], jobs: Sequence[Job], on_done: Done, *, num_bytes: int) -> None:
        """Do all jobs, in any order; each leaves its result on disk and is whole or not there.

        Args:
            work: A function of a module, that may run twice for one job.
            jobs: What it is given.
            on_done: Called in this process for each job that is done.
            num_bytes: Input of all jobs.

        Raises:
            RunError: A worker was killed, or Ray is not there.
            GlmcoreError: What the work raises.
        """
        if not jobs:
            return
        if self._engine == "ray":
            self._run_on_ray(work, jobs, on_done)
        elif (number := self.number(len(jobs), num_bytes)) == 1:
            for position, job in enumerate(jobs):
                on_done(position, work(job))
        else:
            self._run_in_processes(work, jobs, on_done, number)

    def _run_in_processes(
        self, work: Callable[[Job], dict[str, Any]], jobs: Sequence[Job], on_done: Done, number: int
    ) -> None:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(number, mp_context=context, initializer=_end_with_parent)
        # Ctrl-C reaches every process of a terminal: workers are born deaf to it, and this process ends them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = {self._pool.submit(work, job): position for position, job in enumerate(jobs)}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            for future in as_completed(futures):
                on_done(futures[future], future.result())
        except BrokenProcessPool:
            raise RunError("a worker was killed, perhaps for want of memory: repeat the command to go on") from None

    def _run_on_ray(self, work: Callable[[Job], dict[str, Any]], jobs: Sequence[Job], on_done: Done) -> None:
        """One Ray task for each part.

        Tasks, not Ray Data: the rows stay in files that a part's task reads and writes on its own, so there are no
        blocks of rows to move, order or keep, and Ray repeats a task whose node dies. All nodes see the run's directory
        and the files under the same paths.
        """
        try:
            import ray
            from ray import exceptions
        except ImportError:
            raise RunError("the Ray engine needs ray: pip install 'glmcore[ray]'") from None
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
            self._ray = ray
        remote = ray.remote(num_cpus=1, max_retries=3)(work)
        waiting = {remote.remote(job): position for position, job in enumerate(jobs)}
        while waiting:
            [done], _ = ray.wait(list(waiting), num_returns=1)
            try:
                record = ray.get(done)
            except exceptions.RayTaskError as error:
                raise error.cause from None
            except exceptions.RayError as error:
                raise RunError(f"a Ray worker failed: {' '.join(str(error).split())[:300]}") from None
            on_done(waiting.pop(done), record)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._ray is not None:
            self._ray.shutdown()
        if self._pool is None:
            return
        if kind is not None:
            for child in set(multiprocessing.active_children()) - self._others:
                child.kill()
        self._pool.shutdown(cancel_futures=kind is not None)


def _end_with_parent() -> None:
    """In a worker: end as soon as the parent has, by whatever signal."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
