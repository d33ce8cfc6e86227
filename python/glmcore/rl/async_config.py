"""The section of a recipe that describes asynchronous reinforcement learning, `[rl.asynchronous]`."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from glmcore.config import Config


class AsyncConfig(Config):
    """How far sampling may run ahead of training. Used with `rl.mode = "async"`."""

    max_staleness: NonNegativeInt = 4
    """Most optimiser steps between sampling a token and training on it, kept strictly: a rollout that cannot be trained
    on in time is not begun. 0 is synchronous training."""
    environment_slots: PositiveInt | None = None
    """Rollouts that run at a time; None for those of one step."""
    order: Literal["deadline", "fifo"] = "deadline"
    """Which complete groups are trained on first: those that will be too old first, or those admitted first. With
    `fifo` a slow group holds up those behind it; what a batch consists of then depends on no timing."""
    record_rollouts: bool = True
    """Keep what every step trains on, so that `rl.replay` can repeat the run to the bit."""


class RayConfig(Config):
    """The cluster of `rl.backend = "ray"`, section `[rl.ray]`. The ranks of the trainer are those of `[parallel]`."""

    address: str | None = None
    """Of a running cluster; None starts a Ray on this machine."""
    num_engines: PositiveInt = 1
    """Actors with an engine each, in `mode = "async"`."""
    engine_cpus: PositiveInt = 1
    """Cores, and threads of PyTorch, of each."""
    engine_gpus: NonNegativeFloat = 0
    """GPUs of each; an engine with one computes there."""
    num_environment_workers: PositiveInt = 1
    """Actors with the environments of their rollouts, in `mode = "async"`."""
    environment_cpus: PositiveInt = 1
    """Cores of each."""
    trainer_cpus: PositiveInt = 1
    """Cores of each rank of the trainer."""
    trainer_gpus: NonNegativeFloat = 0
    """GPUs of each rank of the trainer."""
    max_worker_restarts: NonNegativeInt = 8
    """Deaths of engines, environments and the buffer, all together, that a run survives."""
    max_trainer_restarts: NonNegativeInt = 8
    """How often a trainer that was lost, with the buffer or alone, is replaced by one that goes on from the last
    checkpoint."""
    health_every_s: PositiveFloat = 1.0
    """How often engines, environments and the buffer are asked whether they live."""
    health_timeout_s: PositiveFloat = 120.0
    """One that does not answer for so long is ended and started again."""

    @property
    def trainer_bundle(self) -> dict[str, float]:
        """What a rank of the trainer needs."""
        return {"CPU": self.trainer_cpus, "GPU": self.trainer_gpus}

    def num_cpus(self, num_ranks: int, *, samples: bool) -> int:
        """Cores that a run asks for.

        Args:
            num_ranks: Of the trainer.
            samples: Whether there are engines and environments beside it.
        """
        beside = self.num_engines * self.engine_cpus + self.num_environment_workers * self.environment_cpus
        return num_ranks * self.trainer_cpus + (beside if samples else 0)
