"""Where the loop gets its tasks from: the order of the data set, or a curriculum that learns from rewards."""

from collections.abc import Sequence
from typing import Any, Protocol

from glmcore.data.reasoning import Problem
from glmcore.errors import ConfigError


class TaskSource(Protocol):
    """Gives out tasks. The same calls in the same order give the same tasks, whatever the machine.

    A source's state belongs to a checkpoint of the loop: restored with it, it gives out what it gave out after it.
    """

    def next(self, count: int) -> list[Problem]:
        """The next `count` tasks, each to be tried by one group. A task may come again."""
        ...

    def task(self, task_id: str) -> Problem:
        """The task of that id, for a group that an interrupted run has left.

        Raises:
            KeyError: The source has no such task.
        """
        ...

    def observe(self, task_id: str, rewards: Sequence[float]) -> None:
        """Take note of the rewards of a finished group, whether it is trained on or dropped."""
        ...

    def finish_step(self, step: int, reward: float) -> None:
        """Take note that a step is done.

        Args:
            step: Its number, from 1.
            reward: Mean reward of all that was sampled for it, dropped groups among them.
        """
        ...

    def figures(self) -> dict[str, float]:
        """What to log of the source after a step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state, plain JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        ...


class FixedOrder:
    """The tasks as they come, from the start again after the last. Rewards change nothing.

    Args:
        tasks: At least one; ids may repeat where the task does.
    """

    def __init__(self, tasks: Sequence[Problem]) -> None:
        if not tasks:
            raise ConfigError("there are no tasks to train on")
        self._tasks = list(tasks)
        self._by_id = {task.id: task for task in self._tasks}
        self._given = 0

    def next(self, count: int) -> list[Problem]:
        """See `TaskSource.next`."""
        first, self._given = self._given, self._given + count
        return [self._tasks[place % len(self._tasks)] for place in range(first, self._given)]

    def task(self, task_id: str) -> Problem:
        """See `TaskSource.task`."""
        return self._by_id[task_id]

    def observe(self, task_id: str, rewards: Sequence[float]) -> None:
        """Nothing depends on rewards."""

    def finish_step(self, step: int, reward: float) -> None:
        """Nothing depends on steps."""

    def figures(self) -> dict[str, float]:
        """Nothing to log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """How many were given out."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `TaskSource.load_state_dict`."""
        self._given = int(state["given"])
