"""A program to run, and the exchange with the launcher that runs it."""

import json
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from glmcore.envs.sandbox.limits import MIB, Limits
from glmcore.errors import SandboxError

HEADER_BYTES = 1 << 16
"""Most bytes of the line that a launcher answers with, files not counted."""


@dataclass(frozen=True)
class Job:
    """A program with what it finds and what is wanted of it. Paths are relative to the work folder, `/work`."""

    argv: Sequence[str]
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Files that are there when it starts."""
    stdin: bytes = b""
    wanted: Sequence[str] = ()
    """Files that are brought back."""

    def __post_init__(self) -> None:
        for name in (*self.files, *self.wanted):
            path = PurePosixPath(name)
            if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name:
                raise SandboxError(f"file {name!r} is not below the work folder")
        if not self.argv:
            raise SandboxError("a job needs a program to run")


def message(job: Job, limits: Limits, *, bound_addresses: bool) -> bytes:
    """What the launcher reads.

    Args:
        job: The job.
        limits: Bounds that the launcher sets on the program.
        bound_addresses: Whether memory is bounded by the addresses of each process, there being no control group.
    """
    files = min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    processes = limits.processes + 4 if bound_addresses else max(256, limits.processes + 4)
    rlimits = [
        # SIGXCPU tells it apart from other deaths; SIGKILL follows for those that do not mind.
        ("RLIMIT_CPU", limits.cpu_seconds, limits.cpu_seconds + 1),
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_FSIZE", limits.disk_bytes, limits.disk_bytes),
        ("RLIMIT_NOFILE", files, files),
        # Linux counts by user, over all sandboxes of one; control groups are the real bound where they are there.
        ("RLIMIT_NPROC", processes, processes),
    ]
    if bound_addresses:
        rlimits.append(("RLIMIT_AS", limits.memory_bytes, limits.memory_bytes))
    header = {
        "argv": list(job.argv),
        "files": [(name, len(data)) for name, data in job.files.items()],
        "wanted": list(job.wanted),
        "rlimits": rlimits,
        "output_bytes": limits.output_bytes,
    }
    return json.dumps(header).encode() + b"\n" + b"".join(job.files.values())


def read_answer(answer: bytes) -> tuple[int, dict[str, bytes]] | None:
    """Exit code and files from the launcher's answer; None if it is cut short or was tampered with."""
    line, _, rest = answer.partition(b"\n")
    try:
        header = json.loads(line)
        code, sizes = int(header["code"]), [(str(name), int(size)) for name, size in header["files"]]
    except (ValueError, KeyError, TypeError):
        return None
    files: dict[str, bytes] = {}
    for name, size in sizes:
        if not 0 <= size <= len(rest):
            return None
        files[name], rest = rest[:size], rest[size:]
    return code, files


def answer_bound(limits: Limits) -> int:
    """Most bytes that a launcher's answer has."""
    return limits.output_bytes + HEADER_BYTES + MIB // 16
