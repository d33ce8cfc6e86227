"""Learning rates."""

import math
from dataclasses import dataclass

from glmcore.train.config import TrainConfig


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up from 0 to `peak`, then half a cosine down to `final` at the last step."""

    peak: float
    final: float
    warmup_steps: int
    num_steps: int

    def rate(self, step: int) -> float:
        """Learning rate of `step`, counted from 1 to `num_steps`."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(self.num_steps - self.warmup_steps, 1)
        return self.final + 0.5 * (self.peak - self.final) * (1 + math.cos(math.pi * min(done, 1.0)))


def learning_rate(config: TrainConfig, stage_index: int, step: int) -> float:
    """Rate of a stage's `step`, counted from 1.

    One cosine spans all pretrain and midtrain stages (GLM-4.5 report, section 2.4); each sft stage has its own.
    """
    stage = config.stages[stage_index]
    if stage.learning_rate is not None and stage.final_learning_rate is not None:
        warmup = min(config.optimizer.warmup_steps, stage.num_steps // 10)
        own = CosineSchedule(stage.learning_rate, stage.final_learning_rate, warmup, stage.num_steps)
        return own.rate(step)
    before = sum(earlier.num_steps for earlier in config.stages[:stage_index])
    shared = CosineSchedule(
        config.optimizer.learning_rate,
        config.optimizer.final_learning_rate,
        config.optimizer.warmup_steps,
        config.scheduled_steps,
    )
    return shared.rate(before + step)
