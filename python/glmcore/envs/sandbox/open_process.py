"""A plain process in a folder of its own: bounded, and not shut in."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from glmcore.envs.sandbox.config import SandboxConfig
from glmcore.envs.sandbox.exchange import Exchange
from glmcore.envs.sandbox.job import Job
from glmcore.envs.sandbox.limits import Outcome, SandboxResult


class OpenProcess:
    """Runs a program as the same user, with the machine's files and network in its reach.

    Time, output, and the addresses of each process are bounded. The disk is not, nor are processes that leave their
    session. For code that is trusted, where bubblewrap is not to be had.

    Args:
        config: Bounds.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self.limits = config.limits
        self._work = Path(tempfile.mkdtemp(prefix="glmcore-"))

    def run(self, job: Job) -> SandboxResult:
        """Run `job`, whose work folder is a temporary one. To be called once."""
        limits = self.limits
        for name, data in job.files.items():
            path = self._work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        started = time.monotonic()
        try:
            process = subprocess.Popen(
                list(job.argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self._work), "LANG": "C.UTF-8"},
                cwd=self._work,
                start_new_session=True,
            )
        except OSError as error:
            self.close()
            return SandboxResult("exited", 127, b"", f"{job.argv[0]}: {error.strerror}\n".encode(), 0.0)
        _bound(process.pid, limits.cpu_seconds, limits.memory_bytes, limits.disk_bytes)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        streams = {"stdout": process.stdout.fileno(), "stderr": process.stderr.fileno()}
        bounds = {name: (descriptor, limits.output_bytes) for name, descriptor in streams.items()}
        exchange = Exchange(bounds, [(os.dup(process.stdin.fileno()), job.stdin)])
        process.stdin.close()
        in_time = exchange.run(started + limits.wall_seconds)
        code: int | None = None
        if in_time and exchange.overflowed is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(max(0.0, started + limits.wall_seconds - time.monotonic()))
        seconds = time.monotonic() - started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for descriptor, _ in exchange.inputs:
            os.close(descriptor)
        process.stdout.close()
        process.stderr.close()
        files = self._bring_back(job)
        self.close()
        stdout, stderr = bytes(exchange.said["stdout"]), bytes(exchange.said["stderr"])
        outcome: Outcome = "exited"
        if exchange.overflowed is not None:
            outcome = "too_much_output"
        elif code is None or code == -signal.SIGXCPU:
            outcome = "timeout"
        if outcome != "exited":
            return SandboxResult(outcome, None, stdout, stderr, seconds)
        return SandboxResult("exited", code, stdout, stderr, seconds, files)

    def _bring_back(self, job: Job) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        left = self.limits.output_bytes
        for name in job.wanted:
            path = self._work / name
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= left:
                files[name] = path.read_bytes()
                left -= len(files[name])
        return files

    def close(self) -> None:
        """Remove the work folder."""
        shutil.rmtree(self._work, ignore_errors=True)


def _bound(pid: int, cpu_seconds: int, memory_bytes: int, disk_bytes: int) -> None:
    """Bound a process that has just begun, and what it starts."""
    if sys.platform != "linux":
        return
    limits = {
        resource.RLIMIT_CPU: (cpu_seconds, cpu_seconds + 1),
        resource.RLIMIT_AS: (memory_bytes, memory_bytes),
        resource.RLIMIT_FSIZE: (disk_bytes, disk_bytes),
        resource.RLIMIT_CORE: (0, 0),
    }
    with contextlib.suppress(ProcessLookupError):
        for kind, bounds in limits.items():
            resource.prlimit(pid, kind, bounds)
