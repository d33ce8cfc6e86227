"""Work in a folder, with Python, a shell and files as tools; every call runs in a sandbox of its own.

What lasts from call to call is the folder: it goes into each sandbox and comes out of it. Processes and Python's
variables do not last, so nothing that was started can disturb later calls or the judgement.
"""

import io
import shlex
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from glmcore.chat import Message, ToolCall
from glmcore.envs.config import WorkspaceConfig
from glmcore.envs.items import choose, read_items, text_of
from glmcore.envs.protocol import Item, Split, Start, StepResult
from glmcore.envs.sandbox.job import Job
from glmcore.envs.sandbox.limits import SandboxResult
from glmcore.envs.sandbox.pool import SandboxPool
from glmcore.envs.tool import Tool, bounded, wrong_call
from glmcore.errors import DataError, RequestError

TOOLS: Mapping[str, Tool] = {
    "python": Tool("python", "Run a Python program. Files last, variables do not.", {"code": "string"}),
    "shell": Tool("shell", "Run a bash script in the work folder.", {"command": "string"}),
    "read_file": Tool("read_file", "Read a file of the work folder.", {"path": "string"}),
    "write_file": Tool("write_file", "Write a file of the work folder.", {"path": "string", "content": "string"}),
}
_COMMANDS = {
    "python": "python3 ../call",
    "shell": "bash ../call",
    "read_file": 'cat -- "$1"',
    "write_file": 'mkdir -p -- "$(dirname -- "$1")" && cp ../call "$1"',
}
_IN_FOLDER = (
    "mkdir -p box && tar -xf state.tar -C box && cd box && ({command}); code=$?; tar -cf ../out.tar . ; exit $code"
)


class WorkspaceEnv:
    """One task. A message without a tool call is the answer, and the last one.

    Args:
        pool: Runs the calls.
        config: Tools and bounds.
    """

    def __init__(self, pool: SandboxPool, config: WorkspaceConfig) -> None:
        self._pool = pool
        self._config = config
        self._tools = {name: TOOLS[name] for name in config.tools}
        self._item: Item | None = None
        self._folder = b""

    async def reset(self, task: Item) -> Start:
        """Fill the folder and pose the task."""
        self._item = task
        self._folder = _archive({name: str(text) for name, text in task.data.get("files", {}).items()})
        tools = [tool.schema for tool in self._tools.values()]
        return Start([{"role": "user", "content": text_of(task.data, "prompt")}], tools)

    async def step(self, message: Message) -> StepResult:
        """Run the calls, one after the other, or judge the answer.

        Raises:
            RequestError: There was no `reset`.
            SandboxError: A sandbox could not be started.
        """
        if self._item is None:
            raise RequestError("reset the environment before the first step")
        if message.tool_calls:
            return StepResult([{"role": "tool", "content": await self._call(call)} for call in message.tool_calls])
        if not message.finished_thinking:
            return StepResult(done=True)
        return StepResult(reward=float(await self._is_right(self._item, message.content)), done=True)

    async def _call(self, call: ToolCall) -> str:
        wrong = wrong_call(call, self._tools)
        if wrong is not None:
            return wrong
        texts = [str(call.arguments[name]) for name in TOOLS[call.name].arguments]
        path = texts[0] if call.name.endswith("_file") else ""
        result = await self._run(_COMMANDS[call.name], texts[-1], path)
        said = (result.stdout + result.stderr).decode(errors="replace")
        if result.outcome != "exited":
            said += f"\n[ended: {result.outcome.replace('_', ' ')}; the folder is as it was]"
        elif "out.tar" not in result.files:
            said += "\n[the folder has become too large, and is as it was]"
        elif result.exit_code:
            said += f"\n[exit code {result.exit_code}]"
        return bounded(said.strip() or "[no output]", self._config.max_result_chars)

    async def _run(self, command: str, text: str, path: str = "") -> SandboxResult:
        """Run a command in the folder, and keep what it has made of the folder."""
        script = _IN_FOLDER.format(command=command)
        files = {"state.tar": self._folder, "call": text.encode(errors="replace")}
        job = Job(["bash", "-c", script, "call", path], files=files, wanted=["out.tar"])
        result = await self._pool.run_async(job)
        if result.outcome == "exited":
            self._folder = result.files.get("out.tar", self._folder)
        return result

    async def _is_right(self, item: Item, answer: str) -> bool:
        check = item.data.get("check")
        if check is not None:
            result = await self._run(f"bash -c {shlex.quote(str(check))}", answer)
            return result.outcome == "exited" and result.exit_code == 0
        answers = item.data["answers"]
        return answer.strip() in ([answers] if isinstance(answers, str) else [str(one) for one in answers])

    async def close(self) -> None:
        """Forget the folder."""
        self._folder = b""


def _archive(files: Mapping[str, str]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, text in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise DataError(f"file {name!r} is not below the work folder")
            content = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()


class WorkspaceFamily:
    """Tasks of JSON lines.

    Args:
        config: Tasks, tools and sandbox.
        names: None.

    Raises:
        DataError: The file cannot be read, or a line has neither `answers` nor `check`.
    """

    def __init__(self, config: WorkspaceConfig, names: Sequence[str]) -> None:
        self._config = config
        self._items = read_items(config.tasks, ["prompt"])
        for item in self._items:
            if ("answers" in item.data) == ("check" in item.data):
                raise DataError(f"{config.tasks}: {item.id} needs answers or check, one of them")
        self._pool: SandboxPool | None = None

    def tasks(self, split: Split, count: int, seed: int) -> list[Item]:
        """See `Family.tasks`."""
        return choose(self._items, split, count, seed)

    def new(self) -> WorkspaceEnv:
        """The environment of one more episode; the first one starts sandboxes.

        Raises:
            SandboxError: There are none of the kind on this machine.
        """
        if self._pool is None:
            self._pool = SandboxPool(self._config.sandbox)
        return WorkspaceEnv(self._pool, self._config)

    def close(self) -> None:
        """End the sandboxes that stand ready."""
        if self._pool is not None:
            self._pool.close()
