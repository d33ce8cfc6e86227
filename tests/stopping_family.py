"""Sums whose environment stops the command once, as Ctrl-C does."""

import signal
from pathlib import Path
from typing import Any

from glmcore.envs.config import ReasoningGymConfig
from glmcore.envs.reasoning import ReasoningEnv, ReasoningFamily


class StoppingFamily(ReasoningFamily):
    """Stops at the answer that `before` others went before, and leaves `marker`, with which it stops no more."""

    def __init__(self, options: dict[str, Any], names: list[str]) -> None:
        super().__init__(ReasoningGymConfig(), names)
        self._marker, self._left = Path(options["marker"]), int(options["before"])

    def new(self):
        return StoppingEnv(self)

    def count(self):
        self._left -= 1
        if self._left == -1 and not self._marker.exists():
            self._marker.touch()
            signal.raise_signal(signal.SIGINT)


class StoppingEnv(ReasoningEnv):
    def __init__(self, family):
        super().__init__()
        self._family = family

    async def step(self, message):
        self._family.count()
        return await super().step(message)
