"""Mathematical answers: equal in value, whatever their form. By `math-verify`, in processes that can be killed.

`math-verify` reads LaTeX into sympy, which takes 2 to 180 ms for most answers and for ever for some: so it runs in
worker processes with a bound of time, and one that passes it is killed and replaced.
"""

import asyncio
import contextlib
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import time
from queue import SimpleQueue
from types import TracebackType
from typing import IO

from glmcore.envs.verify.verdict import Verdict
from glmcore.errors import VerifierError

START_SECONDS = 120.0
"""Most that a worker takes to import sympy on a busy machine."""
MAX_REPLY_CHARS = 8_000
"""Of a longer reply only the end is read; the answer is what comes last."""
MAX_EXTRACTED_CHARS = 200
"""Of an answer, as it is told in a verdict."""


class _Worker:
    """One process; started at once, ready some seconds later."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "glmcore.envs.verify.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            cwd="/",
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        self._ready = False

    def judge(self, answer: str, reply: str, timeout_s: float) -> tuple[bool, str | None] | None:
        """The worker's judgement; None if there was none in time, and then the worker is of no more use."""
        if not self._ready:
            if self._read_line(START_SECONDS) != b"ready":
                raise VerifierError("the process that compares mathematical answers did not start")
            self._ready = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([answer, reply]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self._read_line(timeout_s)
        if not line:
            return None
        right, extracted = json.loads(line)
        return bool(right), None if extracted is None else extracted[:MAX_EXTRACTED_CHARS]

    def _read_line(self, timeout_s: float) -> bytes:
        """What the worker says, without the end of the line; empty if it says nothing more, or nothing in time."""
        stream: IO[bytes] | None = self._process.stdout
        assert stream is not None
        deadline = time.monotonic() + timeout_s
        said = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while not said.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return b""
                part = os.read(stream.fileno(), 1 << 16)
                if not part:
                    return b""
                said += part
        return said.rstrip(b"\n")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _last_box(reply: str) -> str:
    """A reply from its last box on; the whole of it where there is none."""
    return reply[max(0, reply.rfind("\\boxed")) :]


class MathVerifier:
    """Compares answers with the right ones, from any thread or event loop.

    Use it in a `with` block, which ends the workers.

    Args:
        num_workers: Processes, each about 150 MB.
        timeout_s: Most that the judgement of one answer takes; beyond it the answer is wrong.

    Raises:
        VerifierError: `math-verify` is not installed.
    """

    def __init__(self, num_workers: int = 1, timeout_s: float = 5.0) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise VerifierError("mathematical answers need math-verify: pip install 'glmcore[envs]'")
        self.timeout_s = timeout_s
        self._workers: SimpleQueue[_Worker] = SimpleQueue()
        self._num_workers = num_workers
        for _ in range(num_workers):
            self._workers.put(_Worker())

    def verify(self, answer: str, reply: str) -> Verdict:
        r"""Judge a reply; blocks until a worker is free and has judged.

        Args:
            answer: The right answer, LaTeX with or without dollars, or a plain number.
            reply: What was answered after the thinking. What counts is the last `\boxed{}`, else the last formula or
                number that is said to be the answer, else the last one.

        Raises:
            VerifierError: A worker did not start.
        """
        worker = self._workers.get()
        try:
            told = worker.judge(answer, _last_box(reply)[-MAX_REPLY_CHARS:], self.timeout_s)
        except BaseException:
            worker.kill()
            self._workers.put(_Worker())
            raise
        if told is None:
            worker.kill()
            worker = _Worker()
        self._workers.put(worker)
        if told is None:
            return Verdict(0.0, None, f"could not be compared within {self.timeout_s:g} s")
        right, extracted = told
        if right:
            return Verdict(1.0, extracted)
        return Verdict(0.0, extracted, "no answer was found" if extracted is None else "another value")

    async def verify_async(self, answer: str, reply: str) -> Verdict:
        """`verify` for an event loop, in a thread of its own."""
        return await asyncio.to_thread(self.verify, answer, reply)

    def close(self) -> None:
        """End the workers; those at work are waited for."""
        for _ in range(self._num_workers):
            self._workers.get().kill()

    def __enter__(self) -> "MathVerifier":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
