"""One sandbox: started ahead, it runs one program and is gone."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from glmcore.envs.sandbox import bubblewrap
from glmcore.envs.sandbox.cgroups import ControlGroup
from glmcore.envs.sandbox.config import SandboxConfig
from glmcore.envs.sandbox.exchange import Exchange
from glmcore.envs.sandbox.job import Job, answer_bound, message, read_answer
from glmcore.envs.sandbox.limits import Outcome, SandboxResult
from glmcore.envs.sandbox.seccomp import filter_program
from glmcore.errors import SandboxError

START_SECONDS = 20.0
"""Most that a sandbox may take to come up on a busy machine."""
_LAUNCHER = (Path(__file__).parent / "launcher.py").read_text(encoding="utf-8")
_number = itertools.count()


class Sandbox(Protocol):
    """What runs one program."""

    def run(self, job: Job) -> SandboxResult:
        """Run it; blocks until nothing of it is left."""
        ...

    def close(self) -> None:
        """Give up what was started, run or not."""
        ...


class BubblewrapSandbox:
    """A sandbox that waits for its one job.

    As root its processes belong to a user id of their own from the start, so that not even bubblewrap has powers.

    Args:
        config: Bounds and what can be seen.

    Raises:
        SandboxError: Bubblewrap or control groups are not there.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config
        self.limits = config.limits
        number, bwrap = next(_number), bubblewrap.find_bwrap()
        self._group = ControlGroup(f"{os.getpid()}-{number}", self.limits) if config.memory == "cgroup" else None
        try:
            self._start(number, bwrap)
        except BaseException:
            if self._group is not None:
                self._group.remove()
            raise

    def _start(self, number: int, bwrap: str) -> None:
        """Start bubblewrap, which makes the sandbox and then waits until it is in its control group."""
        job, self._job = os.pipe()
        self._answer, answer = os.pipe()
        go, self._go = os.pipe()
        told, info = os.pipe()
        given = [job, answer, go, info, *map(_file, (filter_program(), *bubblewrap.identity_files()))]
        args = bubblewrap.command(
            bwrap,
            [bubblewrap.python(), "-I", "-S", "-c", _LAUNCHER, str(job), str(answer)],
            self.limits,
            self.config.read_only,
            bubblewrap.Descriptors(go, info, *given[4:]),
        )
        user = bubblewrap.UNPRIVILEGED[number % len(bubblewrap.UNPRIVILEGED)] if os.geteuid() == 0 else None
        identity = {} if user is None else {"user": user, "group": user, "extra_groups": ()}
        try:
            self._process = subprocess.Popen(
                args,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={},  # bubblewrap's own environment can be read inside, at /proc/1/environ
                cwd="/",
                pass_fds=given,
                start_new_session=True,
                **identity,
            )
        finally:
            for descriptor in given:
                os.close(descriptor)
        with os.fdopen(told, "rb") as file:
            child = file.read()  # ends when bubblewrap has said it, or is no more
        if self._group is not None and child:
            for pid in (self._process.pid, int(json.loads(child)["child-pid"])):
                with contextlib.suppress(ProcessLookupError):
                    self._group.add(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, b"1")
        os.close(self._go)

    def run(self, job: Job) -> SandboxResult:
        """Run `job`; blocks until nothing of it is left. To be called once."""
        process, limits = self._process, self.limits
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        exchange = Exchange(
            {
                "stdout": (process.stdout.fileno(), limits.output_bytes),
                "stderr": (process.stderr.fileno(), limits.output_bytes),
                "answer": (self._answer, answer_bound(limits)),
            },
            [
                (self._job, message(job, limits, bound_addresses=self._group is None)),
                (os.dup(process.stdin.fileno()), job.stdin),
            ],
        )
        process.stdin.close()
        self._job = -1
        try:
            came_up = exchange.run(time.monotonic() + START_SECONDS, until="answer")
            started = time.monotonic()
            in_time = came_up and exchange.run(started + limits.wall_seconds)
            seconds = time.monotonic() - started
        finally:
            self._kill()
            for descriptor, _ in exchange.inputs:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        out_of_memory = self._group is not None and self._group.ran_out_of_memory
        self.close()
        return _result(exchange, seconds, in_time=in_time, came_up=came_up, out_of_memory=out_of_memory)

    def _kill(self) -> None:
        """End every process: bubblewrap's group, and with its first process all of the namespace."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End it, run or not."""
        self._kill()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        for descriptor in (self._job, self._answer):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._job = self._answer = -1
        if self._group is not None:
            self._group.remove()


def _result(exchange: Exchange, seconds: float, *, in_time: bool, came_up: bool, out_of_memory: bool) -> SandboxResult:
    stdout, stderr = bytes(exchange.said["stdout"]), bytes(exchange.said["stderr"])
    answer = read_answer(bytes(exchange.said["answer"]).removeprefix(b"started\n"))
    outcome: Outcome = "exited"
    if exchange.overflowed is not None:
        outcome = "too_much_output"
    elif out_of_memory:
        outcome = "out_of_memory"
    elif not came_up:
        outcome = "failed"
    elif not in_time or (answer is not None and answer[0] == -signal.SIGXCPU):
        outcome = "timeout"
    elif answer is None:
        outcome = "failed"
    if outcome != "exited" or answer is None:
        return SandboxResult(outcome, None, stdout, stderr, seconds)
    return SandboxResult(outcome, answer[0], stdout, stderr, seconds, answer[1])


def _file(data: bytes) -> int:
    """A descriptor from which `data` can be read: a file in memory, at its beginning."""
    descriptor = os.memfd_create("glmcore")
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def new_sandbox(config: SandboxConfig) -> Sandbox:
    """A sandbox of the kind that is asked for.

    Raises:
        SandboxError: It does not work on this machine.
    """
    if config.kind == "bubblewrap":
        if sys.platform != "linux":
            raise SandboxError("bubblewrap needs Linux; for trusted code alone ask for sandbox.kind='subprocess'")
        return BubblewrapSandbox(config)
    from glmcore.envs.sandbox.open_process import OpenProcess

    return OpenProcess(config)
