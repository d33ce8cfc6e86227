"""The command line of a bubblewrap sandbox."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from glmcore.envs.sandbox.limits import Limits
from glmcore.errors import SandboxError

UNPRIVILEGED = range(61_184, 65_520)
"""User ids that root takes for sandboxes: systemd's range for users that exist while a service runs."""
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_PASSWD = b"sandbox:x:1000:1000::/work:/bin/sh\n"
_GROUP = b"sandbox:x:1000:\n"


def find_bwrap() -> str:
    """Path of the program.

    Raises:
        SandboxError: It is not installed.
    """
    path = shutil.which("bwrap")
    if path is None:
        raise SandboxError(
            "bubblewrap is not installed: install it (Debian: apt install bubblewrap), or for trusted code alone ask "
            "for sandbox.kind='subprocess'"
        )
    return path


class Descriptors(NamedTuple):
    """What bubblewrap reads and writes on the way."""

    go: int
    """It starts the launcher when there is a byte."""
    info: int
    """Takes the process id of what will be the first process inside, as JSON."""
    seccomp: int
    """The filter."""
    passwd: int
    group: int
    """Contents of `/etc/passwd` and `/etc/group`."""


def command(
    bwrap: str, launcher: Sequence[str], limits: Limits, read_only: Sequence[str], descriptors: Descriptors
) -> list[str]:
    """The sandbox's own arguments and the launcher's.

    Inside there is a user without powers that cannot make namespaces of its own, alone with its processes and without
    a network; `/usr` and `read_only` can be read; `/work`, `/tmp` and `/dev/shm` are file systems
    in memory of a bounded size; the rest is read-only and nearly empty.

    Args:
        bwrap: The program; see `find_bwrap`.
        launcher: What runs inside.
        limits: Sizes.
        read_only: Folders that can be read.
        descriptors: Open in the process that runs the command.
    """
    size = str(limits.disk_bytes)
    args = [bwrap, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    args += ["--unshare-cgroup-try", "--disable-userns", "--cap-drop", "ALL", "--uid", "1000", "--gid", "1000"]
    args += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--clearenv"]
    for name, value in (("PATH", search_path()), ("HOME", "/work"), ("LANG", "C.UTF-8"), ("TMPDIR", "/tmp")):
        args += ["--setenv", name, value]
    args += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib64", "lib32"):
        path = Path("/", name)
        if path.is_symlink():
            args += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            args += ["--ro-bind", str(path), str(path)]
    for path in ("/etc/ld.so.cache", "/etc/alternatives", "/etc/ssl/certs", "/etc/localtime"):
        args += ["--ro-bind-try", path, path]
    args += ["--ro-bind-data", str(descriptors.passwd), "/etc/passwd"]
    args += ["--ro-bind-data", str(descriptors.group), "/etc/group"]
    for path in {*read_only, *_python_folders()}:
        args += ["--ro-bind", path, path]
    args += ["--proc", "/proc", "--dev", "/dev"]
    for path in ("/work", "/tmp", "/dev/shm"):
        args += ["--size", size, "--tmpfs", path]
    args += ["--remount-ro", "/", "--remount-ro", "/dev", "--chdir", "/work", "--seccomp", str(descriptors.seccomp)]
    args += ["--info-fd", str(descriptors.info), "--block-fd", str(descriptors.go), "--", *launcher]
    return args


def identity_files() -> tuple[bytes, bytes]:
    """Contents of `/etc/passwd` and `/etc/group` inside."""
    return _PASSWD, _GROUP


def python() -> str:
    """The Python that runs inside: the system's, or where there is none the running one."""
    return shutil.which("python3", path=SYSTEM_PATH) or os.path.realpath(sys.executable)


def search_path() -> str:
    """`PATH` inside."""
    own = str(Path(python()).parent)
    return SYSTEM_PATH if own in SYSTEM_PATH.split(":") else f"{own}:{SYSTEM_PATH}"


def _python_folders() -> list[str]:
    """What the Python inside needs beside `/usr`."""
    return [] if Path(python()).is_relative_to("/usr") else [os.path.realpath(sys.base_prefix)]
