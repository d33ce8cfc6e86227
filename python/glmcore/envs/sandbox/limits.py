"""What a program in a sandbox may use, and what is told of its run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

MIB = 1 << 20
Outcome = Literal["exited", "timeout", "out_of_memory", "too_much_output", "failed"]
"""`failed`: the sandbox itself did not come up, or was broken from inside."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one run. Whatever passes one is killed with all its processes."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    """Of any one process."""
    memory_bytes: int = 512 * MIB
    """Of all processes together, files in memory included."""
    processes: int = 64
    """Processes and threads at a time."""
    disk_bytes: int = 64 * MIB
    """Of the work folder; as much again of `/tmp` and of `/dev/shm`. They lie in memory and count there too."""
    output_bytes: int = MIB
    """Of stdout and stderr each; also of all files that are brought back."""


@dataclass(frozen=True)
class SandboxResult:
    """A run that is over: nothing of it is left."""

    outcome: Outcome
    exit_code: int | None
    """Of the program, `-signal` where one killed it; None where it did not end by itself."""
    stdout: bytes
    stderr: bytes
    """Of a failed sandbox, what it said."""
    seconds: float
    """From the start of the program, not of its sandbox."""
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Contents of the files that were asked for and are there."""
