"""What an environment is: it poses a task, answers the assistant's messages, and gives rewards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from glmcore.chat import Message

Split = Literal["train", "held_out"]


class Task(Protocol):
    """What an episode is about. `glmcore.data.reasoning.Problem` is one, and so is `Item`."""

    @property
    def id(self) -> str:
        """Its name, the same in every run: groups and statistics are kept by it."""
        ...


@dataclass(frozen=True)
class Item:
    """A task of plain data."""

    id: str
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What its environment reads; environments say which keys."""


@dataclass(frozen=True)
class Start:
    """What the assistant reads first."""

    messages: Sequence[Mapping[str, Any]]
    """Messages as `glmcore.chat` takes them; the last is not the assistant's."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Function descriptions with JSON schemas, as `glmcore.chat` takes them."""


@dataclass(frozen=True)
class Delegation:
    """Stands for an observation that a sub-agent has to find: the same model in a conversation of its own.

    The content of the sub-agent's last message becomes a tool message in this place.
    """

    environment: "Environment[Any]"
    task: Task
    judged: bool = False
    """Whether the sub-agent is rewarded by its own environment; else it shares the reward of the whole episode."""


@dataclass(frozen=True)
class StepResult:
    """The environment's answer to a message."""

    observations: Sequence[Mapping[str, Any] | Delegation] = ()
    """Messages for the assistant, of role `tool` or `user`; none when the episode is over."""
    reward: float = 0.0
    """Of this turn; the reward of an episode is their sum. An outcome reward comes with the last turn."""
    done: bool = False
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Named figures that the reward is made of, for the record; summed over an episode."""


TaskT = TypeVar("TaskT", contravariant=True, bound=Task)


class Environment(Protocol[TaskT]):
    """One episode. A single-turn task is done after the first step.

    Whatever it raises, and whatever takes longer than allowed, fails this one episode. Work that blocks belongs into a
    thread (`asyncio.to_thread`) or a sandbox: an event loop is shared by all episodes of a process.

    One that never waits for anything may have an attribute `answers_at_once` that is True. Its calls then have no
    clock, which costs more than a short judgement does, and one that waits fails.
    """

    async def reset(self, task: TaskT) -> Start:
        """Begin the episode of `task`."""
        ...

    async def step(self, message: Message) -> StepResult:
        """Judge and answer the assistant's message."""
        ...

    async def close(self) -> None:
        """Give up what the episode holds. Called once, after the last step or instead of it."""
        ...


class Family(Protocol):
    """The environments of one kind with their tasks. Made by `glmcore.envs.registry`."""

    def tasks(self, split: Split, count: int, seed: int) -> Sequence[Task]:
        """`count` tasks; where there are fewer, they come again. No task is in both splits.

        Raises:
            DataError: There is none.
        """
        ...

    def new(self) -> Environment[Any]:
        """The environment of one more episode."""
        ...

    def close(self) -> None:
        """Give up what the episodes share, such as sandboxes that stand ready."""
        ...
