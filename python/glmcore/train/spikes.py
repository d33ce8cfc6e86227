"""Steps that are left out because their loss or gradient leaps."""

import math
from collections import deque
from collections.abc import Iterable
from statistics import fmean, pstdev

from glmcore.train.config import SpikeConfig

ALWAYS = -1.0
"""A limit that every gradient norm is above."""


class SpikeGuard:
    """Remembers the last steps of a stage and says which gradient norm is too large for the next.

    Source: the rule of OLMo-core's SkipStepOptimizer; see `SpikeConfig`.

    Args:
        config: The rule; None lets every step pass.
        history: Loss and gradient norm of each step of the stage so far, the last ones being enough.
    """

    def __init__(self, config: SpikeConfig | None, history: Iterable[tuple[float, float]] = ()) -> None:
        self.config = config
        self._history = deque(history, maxlen=config.window if config else 0)

    @property
    def history(self) -> list[tuple[float, float]]:
        """What a guard that goes on from here has to be given."""
        return list(self._history)

    def max_grad_norm(self, loss: float) -> float:
        """Largest gradient norm with which a step of this loss is not skipped."""
        if self.config is None or len(self._history) < self.config.window // 2:
            return math.inf
        losses, norms = zip(*self._history, strict=True)
        return self._limit(norms) if loss <= self._limit(losses) else ALWAYS

    def add(self, loss: float, grad_norm: float) -> None:
        """Remember a step, skipped or not."""
        self._history.append((loss, grad_norm))

    def _limit(self, values: tuple[float, ...]) -> float:
        deviations = self.config.max_deviations if self.config else math.inf
        return fmean(values) + deviations * pstdev(values)
