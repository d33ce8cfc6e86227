"""What every step of a run is: its rows, its learning rate, the weights of its losses.

All of it is a pure function of the recipe and the tokens seen before the step: no interruption can change it.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

from glmcore.train.config import BatchConfig, ByTokens, ScheduleConfig, StageConfig, TrainConfig


@dataclass(frozen=True)
class LossWeights:
    """What is added to the next-token loss of a step."""

    bias_update_rate: float = 1e-3
    sequence_loss_weight: float = 1e-4
    mtp_loss_weight: float = 0.3


@dataclass(frozen=True)
class Step:
    """An optimiser step."""

    rows: range
    """Numbers of its rows, counted through the stage."""
    first_token: int
    """Tokens that the run has seen before it, padding included."""
    num_tokens: int

    @property
    def end_token(self) -> int:
        """Tokens that the run has seen after it."""
        return self.first_token + self.num_tokens


@dataclass(frozen=True)
class _Stretch:
    """Steps of one size, one after the other."""

    first_step: int
    """Counted from 1."""
    first_row: int
    num_rows: int
    """Of each step."""


class StageSteps:
    """The steps of a stage.

    Args:
        stage: The stage.
        batch: Size of a step, unless the stage has its own.
        first_token: Tokens that the run has seen before the stage.
    """

    def __init__(self, stage: StageConfig, batch: BatchConfig, first_token: int) -> None:
        self.sequence_length = stage.sequence_length
        self.first_token = first_token
        if stage.batch_tokens is not None:
            batch = BatchConfig(num_tokens=stage.batch_tokens, rows_multiple=batch.rows_multiple)
        self._stretches: list[_Stretch] = []
        step, row, wanted = 1, 0, -(-stage.num_tokens // stage.sequence_length)
        while row < wanted:
            num_rows, until = rows_at(batch, stage.sequence_length, first_token + row * stage.sequence_length)
            self._stretches.append(_Stretch(step, row, num_rows))
            rows_left = wanted - row
            if until is not None:
                rows_left = min(rows_left, -(-(until - first_token) // stage.sequence_length) - row)
            num_steps = -(-rows_left // num_rows)
            step, row = step + num_steps, row + num_steps * num_rows
        self.num_steps = step - 1
        self.num_rows = row
        """Rows that the stage consumes."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all steps, `StageConfig.num_tokens` or a part of a step more."""
        return self.num_rows * self.sequence_length

    @property
    def sizes(self) -> tuple[int, int]:
        """Tokens of the first and of the last step."""
        first, last = self._stretches[0], self._stretches[-1]
        return first.num_rows * self.sequence_length, last.num_rows * self.sequence_length

    def step(self, number: int) -> Step:
        """A step, `number` from 1 to `num_steps`."""
        place = bisect_right(self._stretches, number, key=lambda stretch: stretch.first_step) - 1
        stretch = self._stretches[place]
        row = stretch.first_row + (number - stretch.first_step) * stretch.num_rows
        length = self.sequence_length
        return Step(range(row, row + stretch.num_rows), self.first_token + row * length, stretch.num_rows * length)


def rows_at(batch: BatchConfig, sequence_length: int, tokens: int) -> tuple[int, int | None]:
    """Rows of a step that begins when `tokens` have been seen.

    All arithmetic is in integers, so no rounding can move a step.

    Returns:
        The rows, and the number of tokens from which a step has more of them; None if none ever has.
    """
    unit = batch.rows_multiple * sequence_length
    if batch.initial_tokens is None:
        return max(1, batch.num_tokens // unit) * batch.rows_multiple, None
    base, growth, span = batch.initial_tokens, batch.num_tokens - batch.initial_tokens, batch.ramp_tokens
    multiples = max(1, (base * span + growth * min(tokens, span)) // (span * unit))
    if (multiples + 1) * unit > batch.num_tokens:
        return multiples * batch.rows_multiple, None
    until = -(-((multiples + 1) * unit - base) * span // growth)
    return multiples * batch.rows_multiple, until


class TrainPlan:
    """Every step of every stage of a recipe."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.stages: list[StageSteps] = []
        first_token = 0
        for stage in config.stages:
            self.stages.append(StageSteps(stage, config.batch, first_token))
            first_token += self.stages[-1].num_tokens
        shared = [steps for stage, steps in zip(config.stages, self.stages, strict=True) if stage.schedule is None]
        self._shared_tokens = sum(steps.num_tokens for steps in shared)

    def learning_rate(self, stage_index: int, step: int) -> float:
        """Rate of a stage's step: that of the schedule where the step ends, so the last step has the final rate."""
        steps, own = self.stages[stage_index], self.config.stages[stage_index].schedule
        end = steps.step(step).end_token
        if own is not None:
            return rate_at(own, end - steps.first_token, steps.num_tokens)
        return rate_at(self.config.schedule, end, self._shared_tokens)

    def loss_weights(self, stage_index: int, step: int) -> LossWeights:
        """Weights of the losses of a stage's step."""
        balance, tokens = self.config.balance, self.stages[stage_index].step(step).first_token
        return LossWeights(
            bias_update_rate=value_at(balance.bias_update_rate, tokens),
            sequence_loss_weight=value_at(balance.sequence_loss_weight, tokens),
            mtp_loss_weight=value_at(balance.mtp_loss_weight, tokens),
        )


def rate_at(schedule: ScheduleConfig, tokens: int, num_tokens: int) -> float:
    """Learning rate after `tokens` of the `num_tokens` that a schedule spans."""
    peak, final, warmup = schedule.learning_rate, schedule.final_learning_rate, schedule.warmup_tokens
    if tokens < warmup:
        return peak * tokens / warmup
    if schedule.shape == "wsd":
        decay = schedule.decay_tokens or 0
        left = min(1.0, (num_tokens - tokens) / decay)
        return final + (peak - final) * left
    done = (tokens - warmup) / max(num_tokens - warmup, 1)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * min(done, 1.0)))


def value_at(value: ByTokens, tokens: int) -> float:
    """What a value is when `tokens` have been seen."""
    if isinstance(value, list):
        return [change.value for change in value if change.from_tokens <= tokens][-1]
    return value
