"""Model-written programs judged by tests, in sandboxes, where the program never meets its judge.

A program that runs beside its tests can end the process before they do, or change what equality means. So a program
gets inputs and its outputs are compared elsewhere: streams by the caller of the sandbox, results of functions by the
tests in a sandbox of their own (`glmcore.envs.verify.replay`).
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from glmcore.envs.sandbox.job import Job
from glmcore.envs.sandbox.limits import SandboxResult
from glmcore.envs.sandbox.pool import SandboxPool
from glmcore.envs.verify.replay import run_assertions
from glmcore.envs.verify.verdict import Verdict

_FENCE = re.compile(r"^(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)^\1[`~]*[ \t]*$", re.DOTALL | re.MULTILINE)
_PROGRAMS = {"python": (["python3", "main.py"], "main.py"), "bash": (["bash", "main.sh"], "main.sh")}
LANGUAGES = tuple(_PROGRAMS)
_NAMES = {"python": ("python", "python3", "py", ""), "bash": ("bash", "sh", "shell", "")}
"""What fences of a language are called."""


@dataclass(frozen=True)
class StreamTest:
    """A program reads `stdin` and has to print `stdout`; white space at the ends of lines and of the whole is free."""

    stdin: str
    stdout: str


@dataclass(frozen=True)
class AssertionTest:
    """Python that asserts what a function does, as HumanEval and MBPP have it."""

    entry_point: str
    """The function that is judged."""
    source: str
    """Assertions that call it by its name, or a function `check(candidate)`. Arguments and results are literals."""
    setup: str = ""
    """What the assertions need beside it, such as the functions that a prompt gives."""


def extract_code(reply: str, language: str = "python") -> str:
    """The last fenced block of a language in a reply, else the last without a language, else the whole reply."""
    found = [(name.lower(), body) for _, name, body in _FENCE.findall(reply)]
    named = [body for name, body in found if name and name in _NAMES[language]]
    nameless = [body for name, body in found if not name]
    return (named or nameless or [reply])[-1]


class CodeVerifier:
    """Judges programs in the sandboxes of a pool, from any thread or event loop.

    Args:
        pool: Its bounds hold for every run.
    """

    def __init__(self, pool: SandboxPool) -> None:
        self.pool = pool

    def verify_streams(self, code: str, tests: Sequence[StreamTest], language: str = "python") -> Verdict:
        """Run a program on every input; it stops at the first output that differs.

        Raises:
            SandboxError: A sandbox could not be started.
        """
        argv, file = _PROGRAMS[language]
        for number, test in enumerate(tests, start=1):
            job = Job(argv, files={file: code.encode(errors="replace")}, stdin=test.stdin.encode())
            result = self.pool.run(job)
            trouble = _trouble(result)
            if trouble is None and _lines(result.stdout.decode(errors="replace")) != _lines(test.stdout):
                trouble = "another output"
            if trouble is not None:
                return Verdict(0.0, code, f"test {number} of {len(tests)}: {trouble}")
        return Verdict(1.0, code)

    def verify_assertions(self, code: str, test: AssertionTest) -> Verdict:
        """Run a Python function on what its assertions ask, and the assertions on what it gives.

        Raises:
            SandboxError: A sandbox could not be started.
        """
        trouble = run_assertions(self.pool, code, test.entry_point, test.source, test.setup)
        return Verdict(1.0, code) if trouble is None else Verdict(0.0, code, trouble)

    async def verify_streams_async(self, code: str, tests: Sequence[StreamTest], language: str = "python") -> Verdict:
        """`verify_streams` for an event loop, in a thread of its own."""
        return await asyncio.to_thread(self.verify_streams, code, tests, language)

    async def verify_assertions_async(self, code: str, test: AssertionTest) -> Verdict:
        """`verify_assertions` for an event loop, in a thread of its own."""
        return await asyncio.to_thread(self.verify_assertions, code, test)


def _trouble(result: SandboxResult) -> str | None:
    """What went wrong with a run, in a few words; None for a good end."""
    if result.outcome != "exited":
        return result.outcome.replace("_", " ")
    if result.exit_code == 0:
        return None
    last = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return last[0][:200] if last else f"exit code {result.exit_code}"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
