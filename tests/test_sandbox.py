import asyncio
import os
import shutil
import struct
import textwrap
import time
from pathlib import Path

import pytest

from glmcore.envs.sandbox.cgroups import ROOT
from glmcore.envs.sandbox.config import SandboxConfig
from glmcore.envs.sandbox.job import Job, read_answer
from glmcore.envs.sandbox.limits import SandboxResult
from glmcore.envs.sandbox.pool import SandboxPool
from glmcore.envs.sandbox.sandbox import new_sandbox
from glmcore.envs.sandbox.seccomp import filter_program
from glmcore.errors import SandboxError

SHUT_IN = pytest.mark.skipif(
    shutil.which("bwrap") is None or os.geteuid() != 0,
    reason="needs bubblewrap, and root to write control groups",
)
QUICK = SandboxConfig(wall_seconds=8, cpu_seconds=4, memory_mib=96, processes=24, disk_mib=8)


def python(code: str, config: SandboxConfig = QUICK, **fields: object) -> SandboxResult:
    """Run Python code as `main.py`."""
    files = {"main.py": textwrap.dedent(code).encode(), **fields.pop("files", {})}
    return new_sandbox(config).run(Job(["python3", "main.py"], files=files, **fields))


def value(code: str, config: SandboxConfig = QUICK) -> str:
    """What Python code prints, which must end well."""
    result = python(code, config)
    assert (result.outcome, result.exit_code) == ("exited", 0), result
    return result.stdout.decode().strip()


def left_over() -> list[str]:
    """Processes on this machine that belong to a sandbox."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            uid = entry.stat().st_uid
            if 61_184 <= uid < 65_520 and b"bwrap" in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.fixture(params=["bubblewrap", "subprocess"])
def config(request: pytest.FixtureRequest) -> SandboxConfig:
    if request.param == "bubblewrap" and (shutil.which("bwrap") is None or os.geteuid() != 0):
        pytest.skip("needs bubblewrap, and root to write control groups")
    return QUICK.model_copy(update={"kind": request.param})


def test_a_program_has_its_files_its_input_and_gives_back_what_is_wanted(config):
    result = python(
        """
        import sys, pathlib
        text = pathlib.Path("data/in.txt").read_text() + sys.stdin.read()
        pathlib.Path("out.txt").write_text(text.upper())
        pathlib.Path("link").symlink_to("/etc/passwd")
        print("done", file=sys.stderr)
        sys.exit(3)
        """,
        config,
        files={"data/in.txt": b"one "},
        stdin=b"two",
        wanted=["out.txt", "missing", "link"],
    )
    assert (result.outcome, result.exit_code, result.stderr) == ("exited", 3, b"done\n")
    assert result.files == {"out.txt": b"ONE TWO"}


def test_input_that_is_not_read_and_programs_that_are_not_there_do_no_harm(config):
    assert python("pass", config, stdin=b"x" * 300_000).exit_code == 0
    result = new_sandbox(config).run(Job(["no-such-program"]))
    assert (result.outcome, result.exit_code) == ("exited", 127)
    assert b"no-such-program" in result.stderr


def test_a_program_that_does_not_end_is_ended_in_time(config):
    started = time.monotonic()
    result = python("import time; time.sleep(60)", config.model_copy(update={"wall_seconds": 0.5}))
    assert (result.outcome, result.exit_code) == ("timeout", None)
    assert time.monotonic() - started < 30
    busy = python("while True: pass", config.model_copy(update={"cpu_seconds": 1}))
    assert busy.outcome == "timeout"


def test_endless_output_is_cut_off_and_kept_up_to_the_bound(config):
    result = python("while True: print('x' * 1000)", config)
    assert result.outcome == "too_much_output"
    assert len(result.stdout) == 1 << 20


@SHUT_IN
def test_a_fork_bomb_meets_the_bound_and_leaves_nothing():
    bomb = """
        import os, time
        children = 0
        while True:
            try:
                if os.fork() == 0:
                    time.sleep(30)
            except OSError:
                break
            children += 1
        print(children)
        """
    assert 5 < int(value(bomb)) <= 24
    exponential = python("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", QUICK)
    assert exponential.outcome == "timeout"
    assert left_over() == []


@SHUT_IN
def test_memory_is_bounded_over_all_processes_and_files_in_memory():
    assert python("x = bytearray(400 << 20)").outcome == "out_of_memory"
    together = """
        import os, time
        for _ in range(4):
            if os.fork() == 0:
                x = bytearray(b"1") * (40 << 20); time.sleep(20)
        time.sleep(20)
        """
    assert python(together).outcome == "out_of_memory"
    shown = value("x = bytearray(b'1') * (40 << 20); print(len(x) >> 20)")
    assert shown == "40"


@SHUT_IN
@pytest.mark.parametrize("folder", ["/work", "/tmp", "/dev/shm"])
def test_disks_are_small(folder):
    written = value(
        f"""
        written = 0
        try:
            for number in range(64):
                with open("{folder}/" + str(number), "wb") as file:
                    file.write(bytes(1 << 20))
                written += 1
        except OSError:
            pass
        print(written)
        """
    )
    assert 6 <= int(written) <= 8


@SHUT_IN
def test_nothing_outside_can_be_written_or_seen():
    outside = Path("/tmp/glmcore-outside.txt")
    outside.write_text("secret")
    try:
        told = value(
            f"""
            import os
            for path in ("{outside}", "/root", "/home", "/etc/shadow", "{Path.cwd()}", "/sys/fs/cgroup"):
                print(os.path.exists(path))
            for path in ("/usr/x", "/etc/x", "/x", "/proc/sys/kernel/hostname", "/bin/x", "/dev/x"):
                try:
                    open(path, "w").write("x"); print("written", path)
                except OSError:
                    print(False)
            """
        )
    finally:
        outside.unlink()
    assert set(told.split()) == {"False"}


@SHUT_IN
def test_the_environment_of_the_machine_is_nowhere(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    told = value(
        """
        import glob, os
        print(sorted(os.environ))
        for path in glob.glob("/proc/[0-9]*/environ"):
            try: print(path, open(path, "rb").read())
            except OSError: pass
        """
    )
    assert "hunter2" not in told
    assert "SECRET_TOKEN" not in told


@SHUT_IN
def test_no_descriptor_is_passed_on_and_the_launchers_cannot_be_taken():
    told = value(
        """
        import glob, os
        own = {os.readlink(f"/proc/self/fd/{n}") for n in range(3)} | {"anon_inode:[eventfd]"}
        for path in glob.glob("/proc/*/fd/*"):
            if not path.startswith(("/proc/self", "/proc/thread-self", f"/proc/{os.getpid()}/")):
                try: link = os.readlink(path)
                except OSError: continue
                if link not in own: print("taken", path, link)
        print([n for n in os.listdir("/proc/self/fd") if int(n) > 2][1:])
        """
    )
    assert told == "[]"


@SHUT_IN
def test_there_is_no_network_and_no_way_around_it():
    told = value(
        """
        import socket
        def tried(*arguments, address=None):
            try:
                opened = socket.socket(*arguments)
                if address: opened.settimeout(2); opened.connect(address)
                return "open"
            except OSError as error:
                return type(error).__name__
        print(tried(socket.AF_INET, socket.SOCK_STREAM, address=("1.1.1.1", 53)))
        print(tried(socket.AF_INET, socket.SOCK_STREAM, address=("127.0.0.1", 22)))
        print(tried(40, socket.SOCK_STREAM), tried(socket.AF_NETLINK, socket.SOCK_RAW), tried(socket.AF_PACKET, socket.SOCK_RAW))
        print(tried(38, socket.SOCK_SEQPACKET))
        """
    )
    assert "open" not in told


@SHUT_IN
def test_powers_and_dangerous_calls_are_gone():
    told = value(
        """
        import ctypes, errno, os
        libc = ctypes.CDLL(None, use_errno=True)
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print(os.getuid(), status["CapEff"].strip(), status["CapBnd"].strip(), status["NoNewPrivs"].strip(), status["Seccomp"].strip())
        def call(name, *arguments):
            ctypes.set_errno(0)
            return name, getattr(libc, name)(*arguments) < 0, errno.errorcode.get(ctypes.get_errno())
        print(call("unshare", 0x10000000), call("mount", b"x", b"/work", b"tmpfs", 0, None), call("ptrace", 0, 0, 0, 0))
        print(call("syscall", 425, 1, 0), call("syscall", 321, 0, 0, 0), call("chroot", b"/work"), call("personality", 0))
        print(call("ioctl", 0, 0x5412, b"x"))
        pid = os.fork()
        if pid == 0: os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    lines = told.splitlines()
    assert lines[0] == "1000 0000000000000000 0000000000000000 1 2"
    assert "False" not in "".join(lines[1:4])
    assert lines[4] == "7"


@SHUT_IN
def test_daemons_do_not_outlive_the_program():
    started = time.monotonic()
    told = value(
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for n in range(3): os.close(n)
                time.sleep(3600)
            os._exit(0)
        os.wait()
        print("away")
        """
    )
    assert told == "away"
    assert time.monotonic() - started < 30
    assert left_over() == []
    assert [path.name for path in ROOT.glob("**/glmcore/*/") if path.name.startswith(f"{os.getpid()}-")] == []


@SHUT_IN
def test_killing_everything_in_reach_ends_the_sandbox_alone():
    result = python("import os, signal; os.kill(-1, signal.SIGKILL)")
    assert result.outcome in ("failed", "exited")
    assert result.exit_code in (None, -9)


@SHUT_IN
def test_a_pool_gives_each_program_a_fresh_sandbox_and_leaves_nothing_behind():
    code = "import os; print(os.path.exists('/tmp/seen')); open('/tmp/seen', 'w').close()"
    with SandboxPool(QUICK) as pool:
        for _ in range(5):
            assert pool.run(Job(["python3", "-c", code])).stdout == b"False\n"
    assert left_over() == []
    with pytest.raises(RuntimeError, match="closed"):
        pool.run(Job(["true"]))


@SHUT_IN
def test_many_runs_one_after_the_other_all_succeed():
    with SandboxPool(QUICK) as pool:
        assert [pool.run(Job(["true"])).exit_code for _ in range(30)] == [0] * 30


@SHUT_IN
def test_programs_of_one_event_loop_run_beside_each_other():
    async def both(pool: SandboxPool) -> list[bytes]:
        jobs = [Job(["python3", "-c", f"print({number})"]) for number in range(3)]
        return [result.stdout for result in await asyncio.gather(*(pool.run_async(job) for job in jobs))]

    with SandboxPool(QUICK) as pool:
        assert asyncio.run(both(pool)) == [b"0\n", b"1\n", b"2\n"]


def test_a_machine_without_bubblewrap_is_told_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="apt install bubblewrap"):
        SandboxPool(QUICK.model_copy(update={"memory": "rlimit"}))


def test_control_groups_that_cannot_be_written_are_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr("glmcore.envs.sandbox.cgroups.ROOT", tmp_path / "missing")
    with pytest.raises(SandboxError, match="rlimit"):
        new_sandbox(QUICK)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\0b"])
def test_files_beyond_the_work_folder_are_refused(name):
    with pytest.raises(SandboxError, match="work folder"):
        Job(["true"], files={name: b""})


@pytest.mark.parametrize("answer", [b"", b"{}\n", b"x\n", b'{"code": 0, "files": [["a", 5]]}\nxx', b'{"code": []}\n'])
def test_an_answer_that_was_cut_short_or_made_up_counts_for_nothing(answer):
    assert read_answer(answer) is None


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_the_filter_stays_inside_and_every_path_returns(machine):
    lines = list(struct.iter_unpack("<HBBI", filter_program(machine)))
    for place, (code, jump_true, jump_false, _) in enumerate(lines):
        if code & 7 == 5:  # a jump
            assert place + 1 + max(jump_true, jump_false) < len(lines)
    assert lines[-1][0] == 6
    with pytest.raises(SandboxError, match="riscv64"):
        filter_program("riscv64")
