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
BYTES_PER_WORKER = 4 << 20
"""Less input than this is not worth the half second that a process takes to start."""


def num_workers(num_threads: int, num_jobs: int, num_bytes: int) -> int:
    """Processes for so many jobs over so much input."""
    return max(1, min(num_threads, num_jobs, num_bytes // BYTES_PER_WORKER))


def run_jobs(
    work: Callable[[Job], dict[str, Any]], jobs: Sequence[Job], on_done: Done, *, workers: int, engine: Engine
) -> None:
    """Do all jobs, in any order; each leaves its result on disk and is whole or not there.

    An error or Ctrl-C ends all workers at once: what they were at is done again by the next call.

    Args:
        work: A function of a module, that may run twice for one job.
        jobs: What it is given.
        on_done: Called in this process for each job that is done.
        workers: Processes; with one the work is done in this process.
        engine: Who does it.

    Raises:
        RunError: A worker was killed, or Ray is not there.
        GlmcoreError: What the work raises.
    """
    if not jobs:
        return
    if engine == "ray":
        _run_on_ray(work, jobs, on_done)
    elif workers == 1:
        for position, job in enumerate(jobs):
            on_done(position, work(job))
    else:
        _run_in_processes(work, jobs, on_done, workers)


def _run_in_processes(work: Callable[[Job], dict[str, Any]], jobs: Sequence[Job], on_done: Done, workers: int) -> None:
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    # Ctrl-C reaches every process of a terminal: workers are born deaf to it, and this process ends them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        futures = {pool.submit(work, job): position for position, job in enumerate(jobs)}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        for future in as_completed(futures):
            on_done(futures[future], future.result())
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise RunError("a worker was killed, perhaps for want of memory: repeat the command to go on") from None
        raise
    pool.shutdown()


def _end_with_parent() -> None:
    """In a worker: end as soon as the parent has, by whatever signal."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_on_ray(work: Callable[[Job], dict[str, Any]], jobs: Sequence[Job], on_done: Done) -> None:
    """One Ray task for each part.

    Tasks, not Ray Data: the rows stay in files that a part's task reads and writes on its own, so there are no blocks
    of rows to move, order or keep, and Ray repeats a task whose node dies. All nodes see the run's directory and the
    files under the same paths.
    """
    try:
        import ray
        from ray import exceptions
    except ImportError:
        raise RunError("the Ray engine needs ray: pip install 'glmcore[ray]'") from None
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
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
    finally:
        if started_here:
            ray.shutdown()
