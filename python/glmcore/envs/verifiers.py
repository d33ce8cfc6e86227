"""Tasks of `verifiers` packages (version 0.4 and its `verifiers.v1`): they pose, our engine answers, they score.

Taken are tasks that a model answers with one message and that score the trace alone. Those that need a container, tools
of their own or a harness are for `verifiers` itself, which can sample from a server of this model (`glmcore serve`).
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from glmcore.chat import Message
from glmcore.envs.config import VerifiersConfig
from glmcore.envs.items import choose
from glmcore.envs.protocol import Split, Start, StepResult
from glmcore.errors import ConfigError, DataError, RequestError


@dataclass(frozen=True)
class VerifiersTask:
    """A task with the object that scores it."""

    id: str
    task: Any


class VerifiersEnv:
    """One task; the reward is the weighted sum of the task's rewards."""

    def __init__(self) -> None:
        self._task: Any = None
        self._messages: list[Mapping[str, Any]] = []

    async def reset(self, task: VerifiersTask) -> Start:
        """Pose the prompt.

        Raises:
            DataError: It is no text.
        """
        self._task, data = task.task, task.task.data
        prompts = [{"role": "user", "content": data.prompt}] if isinstance(data.prompt, str) else data.prompt
        if not prompts:
            raise DataError(f"task {task.id} has no prompt: its user opens the conversation")
        self._messages = [one if isinstance(one, Mapping) else one.model_dump(exclude_none=True) for one in prompts]
        if data.system_prompt:
            self._messages.insert(0, {"role": "system", "content": data.system_prompt})
        return Start(self._messages)

    async def step(self, message: Message) -> StepResult:
        """Score the answer.

        Raises:
            RequestError: There was no `reset`.
        """
        if self._task is None:
            raise RequestError("reset the environment before the first step")
        trace = _trace(self._task, self._messages, message)
        await self._task.score(trace)
        parts = {name: reward.value for name, reward in trace.rewards.items() if reward is not None}
        return StepResult(reward=trace.reward, done=True, parts=parts)

    async def close(self) -> None:
        """Nothing is held."""


def _trace(task: Any, messages: Sequence[Mapping[str, Any]], answer: Message) -> Any:
    """The conversation as `verifiers` records it."""
    v1, traces, types = (importlib.import_module(f"verifiers.v1{part}") for part in ("", ".trace", ".types"))
    kinds = {"system": types.SystemMessage, "user": types.UserMessage, "assistant": types.AssistantMessage}
    said = [kinds[message["role"]](content=message["content"]) for message in messages]
    thinking = answer.reasoning_content or None
    said.append(types.AssistantMessage(content=answer.content, reasoning_content=thinking))
    about = traces.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    trace = traces.Trace(task=about, agent=traces.AgentInfo(config=v1.AgentConfig()))
    trace.nodes = [
        v1.MessageNode(parent=place - 1 if place else None, message=message, sampled=place == len(said) - 1)
        for place, message in enumerate(said)
    ]
    trace.is_completed = trace.ok = True
    return trace


class VerifiersFamily:
    """The tasks of one taskset.

    Args:
        config: Its name and options.
        names: None.

    Raises:
        ConfigError: `verifiers` or the taskset is not installed, or does not take the options.
        DataError: Its tasks need more than an answer.
    """

    def __init__(self, config: VerifiersConfig, names: Sequence[str]) -> None:
        try:
            loaders = importlib.import_module("verifiers.v1.utils.loaders")
        except ImportError as error:
            raise ConfigError(f"{error}: pip install verifiers") from None
        try:
            options = loaders.taskset_config_type(config.taskset)(id=config.taskset, **config.options)
            taskset = loaders.load_taskset(options)
        except (ImportError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"verifiers has no taskset {config.taskset!r} as asked: {error}") from None
        found = list(islice(taskset, config.max_tasks))
        for task in found[:1]:
            if task.NEEDS_CONTAINER or type(task).toolsets(task.config):
                raise DataError(
                    f"tasks of {config.taskset!r} need a container or tools: run them with verifiers itself"
                )
        self._tasks = [VerifiersTask(f"{config.taskset}/{task.data.id or task.data.idx}", task) for task in found]

    def tasks(self, split: Split, count: int, seed: int) -> list[VerifiersTask]:
        """See `Family.tasks`."""
        return choose(self._tasks, split, count, seed)

    def new(self) -> VerifiersEnv:
        """The environment of one more episode."""
        return VerifiersEnv()

    def close(self) -> None:
        """Nothing is held."""
