"""Engines and environments on a Ray cluster, as the trainer sees them. Ray is the extra `glmcore[ray]`."""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

from glmcore.engine.sampling import SamplingParams
from glmcore.envs.config import EpisodeLimits
from glmcore.envs.protocol import Task
from glmcore.errors import EnvironmentFailure, SyncError
from glmcore.fp8.publisher import Publication
from glmcore.fp8.ray_actors import publish_to_actors
from glmcore.progress import say
from glmcore.rl.episode import Ending
from glmcore.rl.episode_record import Recorder
from glmcore.rl.measured import ENGINE
from glmcore.rl.ray_cluster import first_line
from glmcore.rl.ray_environment import Played
from glmcore.rl.recorder import record_row
from glmcore.rl.sync import WeightsLostError
from glmcore.rl.timeline import Timeline, Window

LOOK_SECONDS = 0.1
"""How often actors are asked whether they live, and how often a rollout that finds none looks again."""


class _Worker:
    """An actor, which Ray starts again when it dies; its name for each life tells that it has."""

    def __init__(self, kind: str, actor: Any) -> None:
        self.kind = kind
        self.actor = actor
        self.life: str | None = None
        """None while it is not known to live."""
        self.ready = False
        """Whether it has the trainer's weights, if it is an engine."""
        self.playing = 0
        self.num_deaths = 0
        self._last_life: str | None = None
        self._asked: Any = None

    def look(self) -> None:
        """Take note of the answer to the last question, if it is there, and ask again."""
        import ray
        from ray.exceptions import RayActorError

        if self._asked is not None:
            done, _ = ray.wait([self._asked], timeout=0)
            if not done:
                return
            try:
                self.found(ray.get(self._asked))
            except RayActorError:
                self.lost()
        self._asked = self.actor.status.remote()

    def found(self, life: str) -> None:
        """It lives."""
        if self._last_life not in (None, life):
            self.num_deaths += 1
            self.ready = False
            say(f"an actor with {self.kind} died and was started again")
        self.life = self._last_life = life

    def lost(self) -> None:
        """It has died."""
        self.life, self.ready = None, False


class RaySampling:
    """A `SamplingSide` and a `Player` of actors. What a dead actor was at is done anew by another, or by its next life.

    Args:
        engines: Actors of `glmcore.rl.ray_engine`.
        environments: Actors of `glmcore.rl.ray_environment`.
        limits: Of an episode.
        timeline: Gets an interval for each rollout.
        timeout_s: For actors to be ready, and for weights to be loaded.

    Raises:
        SyncError: An actor is not ready in time.
    """

    def __init__(
        self,
        engines: Sequence[Any],
        environments: Sequence[Any],
        limits: EpisodeLimits,
        timeline: Timeline,
        timeout_s: float,
    ) -> None:
        self.limits = limits
        self.timeout_s = timeout_s
        self.num_tokens = 0
        """Tokens sampled so far, of rollouts that have ended."""
        self._timeline = timeline
        self._engines = [_Worker("an engine", actor) for actor in engines]
        self._environments = [_Worker("environments", actor) for actor in environments]
        self._closed = threading.Event()
        # Rollouts of an earlier trainer end before its requests do.
        self._begin(self._environments)
        self._begin(self._engines)
        self._watcher = threading.Thread(target=self._watch, name="workers", daemon=True)
        self._watcher.start()

    @property
    def needs_weights(self) -> bool:
        """Whether an engine waits for weights."""
        return any(engine.life is not None and not engine.ready for engine in self._engines)

    async def play(self, task: Task, seed: int, sampling: SamplingParams, recorder: Recorder) -> Ending:
        """See `Player.play`. The recorder hears of the rollout when it has ended.

        Raises:
            EnvironmentFailure: The environment broke down.
        """
        from ray.exceptions import RayActorError

        while True:
            worker = await self._free_worker()
            worker.playing += 1
            try:
                with self._timeline.busy(ENGINE, f"rollout of {task.id}"):
                    played: Played = await worker.actor.play.remote(task, seed, sampling)
            except RayActorError:
                worker.lost()
                continue
            finally:
                worker.playing -= 1
            record_row(played.row, recorder)
            self.num_tokens += sum(played.row.loss_mask)
            if played.ending is None:
                raise EnvironmentFailure(played.failed or "the environment failed")
            return played.ending

    def update_weights(self, version: int, buckets: Publication) -> str:
        """See `SamplingSide.update_weights`. An engine that is dead gets its weights when it lives again.

        Raises:
            WeightsLostError: An engine died meanwhile: publish again.
            SyncError: An engine did not load them, or not in time; or none lives.
        """
        engines = self._living_engines()
        lives = [engine.life for engine in engines]
        try:
            checksum = publish_to_actors(buckets, [engine.actor for engine in engines], self.timeout_s)
        except SyncError as error:
            if self._any_died(engines, lives):
                raise WeightsLostError(str(error)) from None
            raise
        for engine, life in zip(engines, lives, strict=True):
            engine.ready = engine.life == life  # one in a later life may have missed a bucket: it gets them again
        return checksum

    def utilisation(self, window: Window, slots: int) -> dict[str, float]:
        """See `SamplingSide.utilisation`: rollouts that were with a worker, environments and engine alike."""
        return {"worker_utilisation": window.utilisation(ENGINE), "slot_utilisation": window.mean_busy(ENGINE) / slots}

    def figures(self) -> dict[str, float]:
        """See `SamplingSide.figures`: deaths since the trainer has started."""
        return {
            "engine_restarts": sum(engine.num_deaths for engine in self._engines),
            "environment_restarts": sum(worker.num_deaths for worker in self._environments),
        }

    def close(self) -> None:
        """Look after the actors no more."""
        self._closed.set()
        self._watcher.join()

    def _begin(self, workers: Sequence[_Worker]) -> None:
        """Have all forget the trainer before this one."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        deadline = time.monotonic() + self.timeout_s
        left = list(workers)
        while left:
            calls = [(worker, worker.actor.begin.remote()) for worker in left]
            left = []
            for worker, call in calls:
                try:
                    worker.found(ray.get(call, timeout=max(0.1, deadline - time.monotonic())))
                except GetTimeoutError:
                    raise SyncError(f"an actor with {worker.kind} was not ready after {self.timeout_s:g} s") from None
                except RayActorError as error:
                    if time.monotonic() > deadline:
                        raise SyncError(f"an actor with {worker.kind} does not start: {first_line(error)}") from None
                    left.append(worker)
            if left:
                time.sleep(LOOK_SECONDS)

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            for worker in (*self._engines, *self._environments):
                worker.look()

    async def _free_worker(self) -> _Worker:
        while True:
            living = [worker for worker in self._environments if worker.life is not None]
            if living:
                return min(living, key=lambda worker: worker.playing)
            await asyncio.sleep(LOOK_SECONDS)

    def _living_engines(self) -> list[_Worker]:
        deadline = time.monotonic() + self.timeout_s
        while not (living := [engine for engine in self._engines if engine.life is not None]):
            if time.monotonic() > deadline:
                raise SyncError(f"no engine has lived for {self.timeout_s:g} s to take new weights")
            time.sleep(LOOK_SECONDS)
        return living

    def _any_died(self, engines: Sequence[_Worker], lives: Sequence[str | None]) -> bool:
        """Whether one of them has another life than it had, or none; says so to them that ask for them next."""
        import ray
        from ray.exceptions import RayError

        died = False
        for engine, life in zip(engines, lives, strict=True):
            try:
                now: str | None = ray.get(engine.actor.status.remote(), timeout=10.0)
            except RayError:
                now = None
            if now is None:
                engine.lost()
            died = died or now != life
        return died
