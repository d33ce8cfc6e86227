"""What the process of the command does for a run on Ray: it starts the parties, looks after them, starts them again.

It trains nothing and samples nothing. Engines, environments and the buffer are started again by Ray, each in its place
and under its old handle; a rank of the trainer takes the whole group with it, which begins again from the last
checkpoint.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from glmcore.errors import RunError, TrajectoryError
from glmcore.progress import say
from glmcore.rl.async_config import RayConfig
from glmcore.rl.ray_buffer import connect_to, new_actor
from glmcore.rl.ray_cluster import Bundle, first_line, give_up, import_ray, in_bundle, reserve
from glmcore.rl.ray_engine import EngineActor, EngineSetup
from glmcore.rl.ray_environment import EnvironmentActor, EnvironmentSetup
from glmcore.rl.ray_trainer import Job, Parties, TrainerGroup, TrainerLostError

BUFFER_SECONDS = 30.0
"""Most that the owner of the buffer in a run that was killed just now may take to be gone."""


@dataclass(frozen=True)
class BufferSetup:
    """The buffer of a run."""

    directory: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Samplers:
    """Who samples beside the trainer."""

    engine: EngineSetup
    environment: EnvironmentSetup


class Supervisor:
    """Starts the parties of a run and sees that they live.

    Args:
        config: How many, and how often they may die.
        buffer: Whose owner is one of them.
        samplers: Engines and environments; None if the trainer samples itself, or nobody does.
        on_start: Called with the actors of the parties whenever a trainer has been started.

    Raises:
        RunError: Ray is not installed, or the cluster has no room.
        TrajectoryError: The buffer cannot be opened.
    """

    def __init__(
        self,
        config: RayConfig,
        buffer: BufferSetup,
        samplers: Samplers | None,
        on_start: Callable[[dict[str, list[Any]]], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.on_start = on_start
        self._places: list[Any] = []
        self._kept: Any = None
        self._trainer: TrainerGroup | None = None
        self._failed: str | None = None
        self.parties = Parties(
            self._start_buffer(buffer), *(([], []) if samplers is None else self._start_samplers(samplers))
        )
        self._closed = threading.Event()
        self._health = threading.Thread(target=self._look_after, name="health", daemon=True)
        self._health.start()

    def run(self, job: Job, num_ranks: int) -> None:
        """Have a trainer do its job; one that is lost is replaced, and the job is begun again.

        Raises:
            RunError: Trainers, or other parties, have died too often; says of what.
            GlmcoreError: What a rank has raised.
        """
        restarts = 0
        while True:
            self._trainer = TrainerGroup(num_ranks, self.config.trainer_bundle)
            self.on_start(self._actors() | {"trainer": self._trainer.actors})
            try:
                self._trainer.run(job, self.parties)
            except TrainerLostError as error:
                if self._failed is not None:
                    raise RunError(self._failed) from None
                if restarts >= self.config.max_trainer_restarts:
                    raise RunError(
                        f"the trainer was lost {restarts + 1} times, rl.ray allows no more: {error}"
                    ) from None
                restarts += 1
                say(f"{error}; a new trainer goes on from the last checkpoint ({restarts})")
            else:
                return
            finally:
                self._trainer.close()

    def close(self) -> None:
        """End all parties; the directory of the buffer is free afterwards, if its owner lives."""
        ray = import_ray()
        self._closed.set()
        self._health.join()
        with contextlib.suppress(TrajectoryError):
            connect_to(self.parties.buffer).close()
        for actors in self._actors().values():
            for actor in actors:
                ray.kill(actor)
        for place in self._places:
            give_up(place)

    def _actors(self) -> dict[str, list[Any]]:
        return {
            "engine": self.parties.engines,
            "environment": self.parties.environments,
            "buffer": [self.parties.buffer],
        }

    def _start_buffer(self, setup: BufferSetup) -> Any:
        deadline = time.monotonic() + BUFFER_SECONDS
        while True:
            actor = new_actor(setup.directory, setup.options, max_restarts=-1)
            try:
                connect_to(actor)
            except TrajectoryError as error:
                if "another process has" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
                continue
            return actor

    def _start_samplers(self, samplers: Samplers) -> tuple[list[Any], list[Any]]:
        config, ray = self.config, import_ray()
        engine: Bundle = {"CPU": config.engine_cpus, "GPU": config.engine_gpus}
        environment: Bundle = {"CPU": config.environment_cpus}
        bundles = [engine] * config.num_engines + [environment] * config.num_environment_workers
        place = reserve(bundles, "SPREAD", "engines and environments")
        self._places.append(place)

        def start(actor: type, number: int, bundle: Bundle, *arguments: Any) -> Any:
            return ray.remote(max_restarts=-1, **in_bundle(place, number, bundle))(actor).remote(*arguments)

        engines = [start(EngineActor, i, engine, samplers.engine) for i in range(config.num_engines)]
        others = range(config.num_engines, len(bundles))
        # Kept here, because Ray needs it again for an actor that it starts again.
        self._kept = ray.put(engines)
        return engines, [start(EnvironmentActor, i, environment, samplers.environment, self._kept) for i in others]

    def _look_after(self) -> None:
        """Count lives, and end what does not answer: Ray starts it again."""
        watched = [_Watched(kind, actor) for kind, actors in self._actors().items() for actor in actors]
        while not self._closed.wait(self.config.health_every_s):
            for party in watched:
                party.look(self.config.health_timeout_s)
            deaths = sum(party.num_deaths for party in watched)
            if deaths > self.config.max_worker_restarts and self._failed is None:
                last = max(watched, key=lambda party: party.num_deaths)
                self._failed = (
                    f"engines, environments and buffer have died {deaths} times, the {last.kind} most often; "
                    f"rl.ray.max_worker_restarts={self.config.max_worker_restarts} allows no more"
                )
                if self._trainer is not None:
                    _kill(self._trainer.actors)


class _Watched:
    """A party that is asked now and then whether it lives."""

    def __init__(self, kind: str, actor: Any) -> None:
        self.kind = kind
        self.actor = actor
        self.num_deaths = 0
        self._life: str | None = None
        self._answers = False
        self._asked: Any = None
        self._asked_at = 0.0

    def look(self, timeout_s: float) -> None:
        ray = import_ray()
        from ray.exceptions import RayActorError

        if self._asked is not None:
            done, _ = ray.wait([self._asked], timeout=0)
            if not done:
                # One that starts answers when it has: what it is made of takes as long as it takes.
                if self._answers and time.monotonic() - self._asked_at > timeout_s:
                    say(f"the {self.kind} has not answered for {timeout_s:g} s and is ended; it is started again")
                    ray.kill(self.actor, no_restart=False)
                    self._answers = False
                return
            try:
                life = ray.get(self._asked)
            except RayActorError as error:
                if self._answers:
                    say(f"the {self.kind} died and is started again: {first_line(error)}")
                self._answers = False
            else:
                self.num_deaths += self._life not in (None, life)
                self._life, self._answers = life, True
        self._asked, self._asked_at = self.actor.status.remote(), time.monotonic()


def _kill(actors: Sequence[Any]) -> None:
    ray = import_ray()
    for actor in actors:
        ray.kill(actor)
