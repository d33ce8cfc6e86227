"""A Ray actor with an engine, which takes new weights while it samples.

Imported in the actor's process; nothing here imports Ray.
"""

import asyncio
import contextlib
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from glmcore.engine.config import EngineConfig
from glmcore.engine.engine import Engine
from glmcore.engine.request import Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.engine.service import EngineService
from glmcore.errors import SyncError
from glmcore.fp8.bucket import Bucket
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.rl.ray_cluster import new_life

MAX_BUCKETS = 2
"""Buckets of an update that wait to be loaded."""


@dataclass(frozen=True)
class EngineSetup:
    """What an actor is made of."""

    model: GlmConfig
    rope_theta: float
    num_threads: int
    engine: EngineConfig
    device: str = "cpu"


class EngineActor:
    """The actor. It answers nobody before its first weights have come."""

    def __init__(self, setup: EngineSetup) -> None:
        torch.set_num_threads(setup.num_threads)
        self._life = new_life()
        with torch.device("meta"):
            model = Glm(setup.model)
        self._model = model.to_empty(device=setup.device)
        self._model.rope_theta = setup.rope_theta
        self._config = setup.engine
        self._service = self._new_service()
        self._has_weights = asyncio.Event()
        self._buckets: queue.Queue[Bucket | SyncError | None] = queue.Queue(MAX_BUCKETS)
        self._update: asyncio.Task[str] | None = None

    async def status(self) -> str:
        """Says that the actor lives, and names its life."""
        return self._life

    async def begin(self) -> str:
        """Forget weights and requests, for a trainer that has just started; gives the name of this life."""
        await self._give_up_update()
        self._has_weights.clear()
        await self._service.close()
        self._service = self._new_service()
        return self._life

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams, priority: int) -> list[Generation]:
        """See `PolicyEngine.generate`."""
        await self._has_weights.wait()
        return await self._service.generate(prompt_ids, params, priority=priority)

    async def start_weight_update(self, version: int) -> None:
        """Begin an update; see `glmcore.fp8.publish_to_actors`. One that was not brought to its end is given up."""
        await self._give_up_update()
        self._buckets = queue.Queue(MAX_BUCKETS)
        self._update = asyncio.create_task(self._service.update_weights(version, _until_none(self._buckets)))

    async def load_weight_bucket(self, header: bytes, data: Any) -> None:
        """Take a bucket: its header, and its bytes as a numpy array in Ray's object store."""
        # A copy, because what Ray shares is read-only and torch has no such tensors.
        await self._put(Bucket.from_header(header, torch.from_numpy(np.array(data))))

    async def finish_weight_update(self) -> str:
        """End the update; gives the checksum of the weights that the engine holds."""
        await self._put(None)
        update, self._update = self._update, None
        assert update is not None, "an update has begun"
        checksum = await update
        self._has_weights.set()
        return checksum

    def _new_service(self) -> EngineService:
        return EngineService(Engine(self._model, self._model.config.eos_token_id, config=self._config))

    async def _give_up_update(self) -> None:
        if self._update is not None:
            with contextlib.suppress(SyncError):
                await self._put(SyncError("the trainer has given this update up"))
                await self._update
            self._update = None

    async def _put(self, item: Bucket | SyncError | None) -> None:
        if self._update is None:
            raise SyncError("a bucket came, and no update has begun")
        while True:
            if self._update.done():
                await self._update  # raises what went wrong
            try:
                self._buckets.put_nowait(item)
            except queue.Full:
                await asyncio.sleep(0.001)
                continue
            return


def _until_none(buckets: "queue.Queue[Bucket | SyncError | None]") -> Iterator[Bucket]:
    while (bucket := buckets.get()) is not None:
        if isinstance(bucket, SyncError):
            raise bucket
        yield bucket
