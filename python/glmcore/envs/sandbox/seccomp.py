"""The system calls that a program in a sandbox may not make, as a classic BPF program.

Namespaces hide the machine; the filter closes what would lead around them or widens the kernel's surface: new user
namespaces, mounts, tracing, keys, BPF, io_uring, sockets of families that no network namespace bounds (VSOCK), pushing
characters into a terminal. What is denied fails with EPERM, so that programs that only try it go on.
"""

import errno
import platform
import struct

from glmcore.errors import SandboxError

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
"""Offsets in `struct seccomp_data`; the low half of each argument comes first."""
_CLONE_NEWUSER, _X32 = 0x10000000, 0x40000000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6."""

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_FILTERED = {"clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "ioctl": (16, 29)}
_DENIED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
"""Numbers on x86-64 and on AArch64."""


def filter_program(machine: str | None = None) -> bytes:
    """The program, an array of `struct sock_filter`, as `bwrap --seccomp` reads it.

    Args:
        machine: `x86_64` or `aarch64`; None for this one.

    Raises:
        SandboxError: There are no numbers for the machine.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise SandboxError(f"no system call filter for {machine} (there are {known})")
    arch, column = _ARCHITECTURES[machine]
    fail = _FAIL | errno.EPERM
    lines = [(_LOAD, 0, 0, _ARCH), (_JUMP_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":  # the x32 interface has the same architecture and other numbers
        lines += [(_JUMP_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    # glibc falls back to clone, whose flags lie in a register, where clone3 is not there.
    lines += _when(_FILTERED["clone3"][column], [(_RETURN, 0, 0, _FAIL | errno.ENOSYS)])
    new_user = [(_LOAD, 0, 0, _FIRST_ARGUMENT), (_JUMP_BITS, 0, 1, _CLONE_NEWUSER), (_RETURN, 0, 0, fail)]
    lines += _when(_FILTERED["clone"][column], [*new_user, (_RETURN, 0, 0, _ALLOW)])
    families: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, _FIRST_ARGUMENT)]
    for family in _FAMILIES:
        families += [(_JUMP_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
    lines += _when(_FILTERED["socket"][column], [*families, (_RETURN, 0, 0, _FAIL | errno.EAFNOSUPPORT)])
    requests: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, _SECOND_ARGUMENT)]
    for request in (_TIOCSTI, _TIOCLINUX):
        requests += [(_JUMP_EQUAL, 0, 1, request), (_RETURN, 0, 0, fail)]
    lines += _when(_FILTERED["ioctl"][column], [*requests, (_RETURN, 0, 0, _ALLOW)])
    for numbers in _DENIED.values():
        lines += _when(numbers[column], [(_RETURN, 0, 0, fail)])
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def _when(number: int, then: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """What to do at one system call, whose number is loaded; every path of `then` returns."""
    return [(_JUMP_EQUAL, 0, len(then), number), *then]
