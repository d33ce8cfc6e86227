"""Rollout workers on a Ray cluster, as the trainer sees them. Ray is the extra `glmcore[ray]`."""

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

from glmcore.engine.sampling import SamplingParams
from glmcore.envs.config import EpisodeLimits
from glmcore.envs.protocol import Task
from glmcore.errors import EnvironmentFailure, RunError, SyncError
from glmcore.fp8.publisher import Publication
from glmcore.fp8.ray_actors import publish_to_actors
from glmcore.progress import say
from glmcore.rl.async_config import RayConfig
from glmcore.rl.episode import Ending
from glmcore.rl.episode_record import Recorder
from glmcore.rl.measured import ENGINE
from glmcore.rl.ray_worker import Played, RolloutActor, WorkerSetup
from glmcore.rl.recorder import record_row
from glmcore.rl.sync import WeightsLostError
from glmcore.rl.timeline import Timeline, Window

READY_SECONDS = 0.05
"""How often a rollout that finds no worker with weights looks again."""


@dataclass(eq=False)
class _Worker:
    actor: Any
    playing: int = 0
    ready: bool = False
    """Whether it has weights."""


class RaySampling:
    """A `SamplingSide` and a `Player` of actors. A worker that dies is replaced and its rollouts are played anew.

    Args:
        config: How many workers.
        setup: Of each.
        limits: Of an episode.
        timeline: Gets an interval for each rollout.
        timeout_s: For weights to be loaded.

    Raises:
        RunError: Ray is not installed.
    """

    def __init__(
        self, config: RayConfig, setup: WorkerSetup, limits: EpisodeLimits, timeline: Timeline, timeout_s: float
    ) -> None:
        self.config = config
        self.limits = limits
        self.timeout_s = timeout_s
        self.num_tokens = 0
        """Tokens sampled so far, of rollouts that have ended."""
        self.num_restarts = 0
        """Workers that have died and were replaced."""
        self._setup = setup
        self._timeline = timeline
        self._lock = threading.Lock()
        self._workers = [_Worker(self._new_actor()) for _ in range(config.num_workers)]

    @property
    def needs_weights(self) -> bool:
        """Whether a worker waits for weights."""
        return not all(worker.ready for worker in self._workers)

    async def play(self, task: Task, seed: int, sampling: SamplingParams, recorder: Recorder) -> Ending:
        """See `Player.play`.

        Raises:
            EnvironmentFailure: The environment broke down.
            RunError: Workers have died too often.
        """
        from ray.exceptions import RayActorError

        while True:
            worker = await self._free_worker()
            worker.playing += 1
            try:
                with self._timeline.busy(ENGINE, f"rollout of {task.id}"):
                    played: Played = await worker.actor.play.remote(task, seed, sampling)
            except RayActorError as error:
                self._replace(worker, str(error))
                continue
            finally:
                worker.playing -= 1
            record_row(played.row, recorder)
            self.num_tokens += sum(played.row.loss_mask)
            if played.ending is None:
                raise EnvironmentFailure(played.failed or "the environment failed")
            return played.ending

    def update_weights(self, version: int, buckets: Publication) -> str:
        """See `SamplingSide.update_weights`.

        Raises:
            WeightsLostError: A worker died meanwhile and was replaced: publish again.
            SyncError: A worker did not load them, or not in time.
        """
        workers = list(self._workers)
        try:
            checksum = publish_to_actors(buckets, [worker.actor for worker in workers], self.timeout_s)
        except SyncError as error:
            dead = [worker for worker in workers if not self._lives(worker)]
            for worker in dead:
                self._replace(worker, str(error))
            if dead:
                raise WeightsLostError(str(error)) from None
            raise
        for worker in workers:
            worker.ready = True
        if self.needs_weights:
            raise WeightsLostError("a worker was replaced during the update")
        return checksum

    def utilisation(self, window: Window, slots: int) -> dict[str, float]:
        """See `SamplingSide.utilisation`: rollouts that were with a worker, environments and engine alike."""
        return {"worker_utilisation": window.utilisation(ENGINE), "slot_utilisation": window.mean_busy(ENGINE) / slots}

    def figures(self) -> dict[str, float]:
        """See `SamplingSide.figures`."""
        return {"worker_restarts": self.num_restarts}

    def close(self) -> None:
        """End the workers."""
        import ray

        for worker in self._workers:
            ray.kill(worker.actor)

    async def _free_worker(self) -> _Worker:
        while True:
            ready = [worker for worker in self._workers if worker.ready]
            if ready:
                return min(ready, key=lambda worker: worker.playing)
            await asyncio.sleep(READY_SECONDS)

    def _replace(self, worker: _Worker, reason: str) -> None:
        with self._lock:
            if worker not in self._workers:
                return  # another of its rollouts has noticed before
            if self.num_restarts >= self.config.max_worker_restarts:
                raise RunError(f"{self.num_restarts} rollout workers have died, rl.ray allows no more: {reason}")
            self.num_restarts += 1
            self._workers[self._workers.index(worker)] = _Worker(self._new_actor())
        say(f"a rollout worker died and is replaced ({self.num_restarts}): {reason.strip().splitlines()[0]}")

    def _new_actor(self) -> Any:
        ray = import_ray()
        return ray.remote(num_cpus=self.config.worker_cpus, max_restarts=0)(RolloutActor).remote(self._setup)

    def _lives(self, worker: _Worker) -> bool:
        import ray
        from ray.exceptions import RayError

        try:
            ray.get(worker.actor.ping.remote(), timeout=10.0)
        except RayError:
            return False
        return True


class Cluster:
    """A connection to Ray: to a cluster, to what this process is connected with already, or a Ray of this machine."""

    def __init__(self, address: str | None) -> None:
        ray = import_ray()
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            import_ray().shutdown()


def import_ray() -> Any:
    """The module.

    Raises:
        RunError: It is not installed.
    """
    try:
        import ray
    except ImportError:
        raise RunError("rl.backend='ray' needs Ray: pip install 'glmcore[ray]'") from None
    return ray
