"""Control groups that bound the memory and the processes of a sandbox, by version 1 or 2 of the kernel's interface."""

import contextlib
import os
import signal
import time
from pathlib import Path

from glmcore.envs.sandbox.limits import Limits
from glmcore.errors import SandboxError

ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("memory", "pids")


class ControlGroup:
    """One sandbox's group; remove it when nothing runs in it.

    Args:
        name: Of the group, unique on the machine.
        limits: What its processes may use together.

    Raises:
        SandboxError: Control groups cannot be written here.
    """

    def __init__(self, name: str, limits: Limits) -> None:
        self._unified = (ROOT / "cgroup.controllers").exists()
        parents = [ROOT] if self._unified else [ROOT / controller for controller in _CONTROLLERS]
        self.folders = [parent / "glmcore" / name for parent in parents]
        try:
            for parent, folder in zip(parents, self.folders, strict=True):
                folder.parent.mkdir(exist_ok=True)
                if self._unified:
                    for place in (parent, folder.parent):
                        (place / "cgroup.subtree_control").write_text("+memory +pids")
                folder.mkdir()
            self._limit(limits)
        except OSError as error:
            self.remove()
            raise SandboxError(
                f"control groups cannot be written ({error}), so memory and processes could not be bounded: run as "
                "root or delegate a group, or ask for sandbox.memory='rlimit', which bounds each process alone"
            ) from None

    def _limit(self, limits: Limits) -> None:
        memory, pids = self.folders[0], self.folders[-1]
        if self._unified:
            (memory / "memory.max").write_text(str(limits.memory_bytes))
            with contextlib.suppress(OSError):  # a kernel without swap has no such file
                (memory / "memory.swap.max").write_text("0")
        else:
            (memory / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
            with contextlib.suppress(OSError):
                (memory / "memory.memsw.limit_in_bytes").write_text(str(limits.memory_bytes))
        (pids / "pids.max").write_text(str(limits.processes + 4))  # the sandbox's own: shell, bwrap twice, launcher

    def add(self, pid: int) -> None:
        """Put a process, and what it starts from now on, into the group."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(pid))

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has killed a process of the group for memory."""
        file = self.folders[0] / ("memory.events" if self._unified else "memory.oom_control")
        try:
            return any(
                line.split()[0] == "oom_kill" and line.split()[1] != "0" for line in file.read_text().splitlines()
            )
        except OSError:
            return False

    def remove(self) -> None:
        """Kill what is left in the group and remove it."""
        for folder in self.folders:
            for _ in range(200):
                try:
                    pids = [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
                except OSError:
                    break
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.005)
