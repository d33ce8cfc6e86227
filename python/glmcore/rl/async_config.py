"""The section of a recipe that describes asynchronous reinforcement learning, `[rl.asynchronous]`."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

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
    """The cluster of `rl.backend = "ray"`, section `[rl.ray]`."""

    address: str | None = None
    """Of a running cluster; None starts a Ray on this machine."""
    num_workers: PositiveInt = 1
    """Actors, each with an engine and the environments of its rollouts."""
    worker_cpus: PositiveInt = 1
    """Cores, and threads of PyTorch, of each."""
    max_worker_restarts: NonNegativeInt = 8
    """Deaths of workers, all together, that a run survives; their rollouts are begun anew by others."""
