"""What it costs to run a program in a sandbox: made for it, or taken from a pool of those that stand ready.

Arms take turns in one run: a bare `subprocess.run`, the plain process that shuts nothing in, a bubblewrap sandbox made
for the run, and one from a pool whose sandboxes had time to come up. Wall time is the median of the rounds. CPU time
is the mean, of this process and of children that it waits for; what runs inside of a sandbox is not in it.

    python benches/sandbox.py
    python benches/sandbox.py --rounds 100 --program python --json
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable

from glmcore.envs.sandbox.config import SandboxConfig
from glmcore.envs.sandbox.job import Job
from glmcore.envs.sandbox.pool import SandboxPool
from glmcore.envs.sandbox.sandbox import new_sandbox

PROGRAMS = {"true": ["true"], "python": ["/usr/bin/python3", "-c", "pass"]}
UNBOXED = SandboxConfig(kind="subprocess", memory="rlimit")
BOXED = SandboxConfig()


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    started, used = time.perf_counter(), cpu_seconds()
    run()
    return time.perf_counter() - started, cpu_seconds() - used


def warm_run(pool: SandboxPool, job: Job) -> tuple[float, float]:
    """A run of a pool, whose next sandbox then gets the time to come up; that counts as CPU time, not as wall time."""
    used = cpu_seconds()
    wall, _ = timed(lambda: pool.run(job))
    time.sleep(0.1)
    return wall, cpu_seconds() - used


def measure(program: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each arm."""
    argv = PROGRAMS[program]
    job = Job(argv)
    found: dict[str, list[tuple[float, float]]] = {}
    with SandboxPool(BOXED) as pool:
        time.sleep(1)  # the first ones come up
        arms: dict[str, Callable[[], tuple[float, float]]] = {
            "subprocess.run": lambda: timed(lambda: subprocess.run(argv, check=True, capture_output=True)),
            "kind = subprocess": lambda: timed(lambda: new_sandbox(UNBOXED).run(job)),
            "bubblewrap, made for the run": lambda: timed(lambda: new_sandbox(BOXED).run(job)),
            "bubblewrap, from a warm pool": lambda: warm_run(pool, job),
        }
        for number in range(rounds + 2):
            for name, arm in arms.items():
                result = arm()
                if number >= 2:
                    found.setdefault(name, []).append(result)
    return {
        name: {
            "wall_ms": 1e3 * statistics.median(wall for wall, _ in results),
            "cpu_ms": 1e3 * statistics.mean(cpu for _, cpu in results),
        }
        for name, results in found.items()
    }


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--program", choices=PROGRAMS, action="append")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = {program: measure(program, args.rounds) for program in args.program or PROGRAMS}
    if args.json:
        print(json.dumps({"load": os.getloadavg()[0], "figures": figures}))
        return
    print(f"{args.rounds} rounds, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for program, arms in figures.items():
        for name, times in arms.items():
            print(f"{program:8} {name:32} {times['wall_ms']:8.1f} ms wall {times['cpu_ms']:8.1f} ms CPU")


if __name__ == "__main__":
    main()
