"""A Ray actor with an engine and environments: it plays rollouts and takes new weights while it does.

Imported in the actor's process; nothing here imports Ray.
"""

import asyncio
import queue
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from glmcore.engine.config import EngineConfig
from glmcore.engine.engine import Engine
from glmcore.engine.sampling import SamplingParams
from glmcore.engine.service import EngineService
from glmcore.envs.config import EnvironmentConfig
from glmcore.envs.protocol import Task
from glmcore.envs.registry import open_family
from glmcore.errors import EnvironmentFailure, RequestError, SyncError
from glmcore.fp8.bucket import Bucket
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.rl.episode import Ending
from glmcore.rl.episode_record import Row
from glmcore.rl.rollout import EpisodePlayer
from glmcore.tokenizer import Tokenizer

MAX_BUCKETS = 2
"""Buckets of an update that wait to be loaded."""


@dataclass(frozen=True)
class WorkerSetup:
    """What an actor is made of."""

    model: GlmConfig
    rope_theta: float
    tokenizer_directory: str
    """On a file system that all machines share."""
    environment: EnvironmentConfig
    tasks: list[str]
    num_threads: int
    engine: EngineConfig


@dataclass(frozen=True)
class Played:
    """A rollout that a worker has played."""

    row: Row
    ending: Ending | None
    """None if the environment failed."""
    failed: str | None = None


class RolloutActor:
    """The actor. It plays nothing sensible before the first weight update."""

    def __init__(self, setup: WorkerSetup) -> None:
        torch.set_num_threads(setup.num_threads)
        model = Glm(setup.model)
        model.rope_theta = setup.rope_theta
        self._service = EngineService(Engine(model, setup.model.eos_token_id, config=setup.engine))
        self._family = open_family(setup.environment, setup.tasks)
        self._player = EpisodePlayer(
            self._service,
            Tokenizer.from_pretrained(setup.tokenizer_directory),
            self._family.new,
            setup.environment.limits.within(setup.model.max_position_embeddings),
            thinking=setup.environment.thinking,
        )
        self._buckets: queue.Queue[Bucket | None] = queue.Queue(MAX_BUCKETS)
        self._update: asyncio.Task[str] | None = None

    async def ping(self) -> None:
        """Say that the worker lives."""

    async def play(self, task: Task, seed: int, sampling: SamplingParams) -> Played:
        """Play one episode, whatever its environment does."""
        row = Row()
        try:
            ending = await self._player.play(task, seed, sampling, row)
        except (EnvironmentFailure, RequestError) as error:
            return Played(row, None, str(error) or type(error).__name__)
        return Played(row, replace(ending, messages=[], tools=[]))

    async def start_weight_update(self, version: int) -> None:
        """Begin an update; see `glmcore.fp8.publish_to_actors`."""
        self._buckets = queue.Queue(MAX_BUCKETS)
        update = self._service.update_weights(version, _until_none(self._buckets))
        self._update = asyncio.create_task(update)

    async def load_weight_bucket(self, header: bytes, data: Any) -> None:
        """Take a bucket: its header, and its bytes as a numpy array in Ray's object store."""
        # A copy, because what Ray shares is read-only and torch has no such tensors.
        bucket = Bucket.from_header(header, torch.from_numpy(np.array(data)))
        await self._put(bucket)

    async def finish_weight_update(self) -> str:
        """End the update; gives the checksum of the weights that the engine holds."""
        await self._put(None)
        assert self._update is not None, "an update has begun"
        return await self._update

    async def _put(self, bucket: Bucket | None) -> None:
        if self._update is None:
            raise SyncError("a bucket came, and no update has begun")
        while True:
            if self._update.done():
                await self._update  # raises what went wrong
            try:
                self._buckets.put_nowait(bucket)
            except queue.Full:
                await asyncio.sleep(0.001)
                continue
            return


def _until_none(buckets: "queue.Queue[Bucket | None]") -> Iterator[Bucket]:
    while (bucket := buckets.get()) is not None:
        yield bucket
