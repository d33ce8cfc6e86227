"""How hard a task is for the policy: from attempts at it, offline and while training goes on."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from glmcore.rl.curriculum.config import DifficultyConfig

Difficulty = Literal["unknown", "easy", "moderate", "hard", "unsolved"]
PASS_REWARD = 1.0
"""An attempt passes with this reward or more."""


@dataclass
class PassRecord:
    """Attempts at one task, in their order."""

    attempts: int = 0
    passes: int = 0
    first_pass: int | None = None
    """Number of the first attempt that passed, from 1."""
    recent_attempts: float = 0.0
    """Attempts, each weighted by half for every half-life of attempts since."""
    recent_passes: float = 0.0
    """Those that passed, likewise."""

    def add(self, rewards: Sequence[float], half_life: float) -> None:
        """Take note of attempts."""
        decay = 0.5 ** (1.0 / half_life)
        for reward in rewards:
            passed = reward >= PASS_REWARD
            self.attempts += 1
            self.passes += passed
            if passed and self.first_pass is None:
                self.first_pass = self.attempts
            self.recent_attempts = self.recent_attempts * decay + 1.0
            self.recent_passes = self.recent_passes * decay + passed

    @property
    def rate(self) -> float:
        """Present pass rate; NaN without attempts."""
        return self.recent_passes / self.recent_attempts if self.attempts else math.nan

    def kind(self, config: DifficultyConfig) -> Difficulty:
        """What the first passes say, whatever the policy has learned since.

        `hard`: none of the first `few_attempts` passed and a later one did, so pass@few = 0 and pass@many > 0 as
        observed; `unsolved`: none of `many_attempts` did; `unknown`: too few attempts to say.
        """
        if self.first_pass is None:
            return "unsolved" if self.attempts >= config.many_attempts else "unknown"
        if self.first_pass > config.few_attempts:
            return "hard"
        return "moderate" if self.attempts >= config.few_attempts else "unknown"

    def difficulty(self, config: DifficultyConfig) -> Difficulty:
        """The kind, or `easy` where the present pass rate is above `easy_rate`."""
        kind = self.kind(config)
        return "easy" if kind in ("moderate", "hard") and self.rate > config.easy_rate else kind

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def next_chunk(record: PassRecord, config: DifficultyConfig) -> int:
    """How many attempts to make next to find a task's difficulty; 0 once it is decided.

    A task that passes among the first few attempts is decided by them, one that does not by its first pass. Chunks
    double what was made, so that a hard task of pass rate p costs at most twice the attempts of one that stops at
    once, about 2 / p, and the prompt is read about log2(many / few) times instead of once an attempt.
    """
    if record.attempts < config.few_attempts:
        return config.few_attempts - record.attempts
    if record.first_pass is not None or record.attempts >= config.many_attempts:
        return 0
    return min(record.attempts, config.many_attempts - record.attempts)
