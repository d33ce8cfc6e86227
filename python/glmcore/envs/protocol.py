"""What an environment is: it poses a task, answers the assistant's messages, and gives a reward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from glmcore.chat import Message
from glmcore.data.reasoning import Problem


@dataclass(frozen=True)
class StepResult:
    """The environment's answer to a message."""

    observations: Sequence[dict[str, Any]]
    """Messages for the assistant; none when the episode is over."""
    reward: float
    """In [0, 1]."""
    done: bool


class Environment(Protocol):
    """One episode. A single-turn task is done after the first step."""

    async def reset(self, task: Problem) -> Sequence[dict[str, Any]]:
        """Begin the episode of `task`; gives the messages that the assistant reads first."""
        ...

    async def step(self, message: Message) -> StepResult:
        """Judge and answer the assistant's message."""
        ...
