"""A task source that the trainer and the samplers ask from different threads."""

import threading
from collections.abc import Sequence
from typing import Any

from glmcore.rl.tasks import TaskSource


class SharedTasks:
    """A `TaskSource` whose calls wait for each other."""

    def __init__(self, source: TaskSource) -> None:
        self._source = source
        self._lock = threading.Lock()

    def next(self, count: int) -> list[Any]:
        """See `TaskSource.next`."""
        with self._lock:
            return self._source.next(count)

    def task(self, task_id: str) -> Any:
        """See `TaskSource.task`."""
        with self._lock:
            return self._source.task(task_id)

    def observe(self, task_id: str, rewards: Sequence[float]) -> None:
        """See `TaskSource.observe`."""
        with self._lock:
            self._source.observe(task_id, rewards)

    def finish_step(self, step: int, reward: float) -> None:
        """See `TaskSource.finish_step`."""
        with self._lock:
            self._source.finish_step(step, reward)

    def figures(self) -> dict[str, float]:
        """See `TaskSource.figures`."""
        with self._lock:
            return self._source.figures()

    def state_dict(self) -> dict[str, Any]:
        """See `TaskSource.state_dict`."""
        with self._lock:
            return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `TaskSource.load_state_dict`."""
        with self._lock:
            self._source.load_state_dict(state)
