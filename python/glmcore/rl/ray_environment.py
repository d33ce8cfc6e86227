"""A Ray actor with environments: it plays rollouts, for which engines in other actors draw the tokens."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from glmcore.engine.request import Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.envs.config import EnvironmentConfig, EpisodeLimits
from glmcore.envs.protocol import Task
from glmcore.envs.registry import open_family
from glmcore.errors import EnvironmentFailure, RequestError
from glmcore.rl.episode import Ending
from glmcore.rl.episode_record import Row
from glmcore.rl.ray_cluster import new_life
from glmcore.rl.rollout import EpisodePlayer
from glmcore.tokenizer import Tokenizer

AGAIN_SECONDS = 0.2
"""What a request waits, after an engine has died, before it asks again."""


@dataclass(frozen=True)
class EnvironmentSetup:
    """What an actor is made of."""

    tokenizer_directory: str
    """On a file system that all machines share."""
    environment: EnvironmentConfig
    tasks: list[str]
    limits: EpisodeLimits


@dataclass(frozen=True)
class Played:
    """A rollout that an actor has played."""

    row: Row
    ending: Ending | None
    """None if the environment failed."""
    failed: str | None = None


class RemoteEngines:
    """Several actors with engines. A request goes to the one with the fewest; if it dies, to another."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = list(actors)
        self._asked = [0] * len(actors)
        self._died = [0] * len(actors)
        """Requests in a row that each has not answered, which puts it behind the others."""

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, priority: int = 0
    ) -> list[Generation]:
        """See `Samples.generate`. An answer that an engine took with it is drawn anew by the next."""
        from ray.exceptions import RayActorError

        while True:
            place = min(range(len(self._actors)), key=lambda i: (self._died[i], self._asked[i]))
            self._asked[place] += 1
            try:
                answer = await _ask(self._actors[place].generate, list(prompt_ids), params, priority)
            except RayActorError:
                self._died[place] += 1
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            finally:
                self._asked[place] -= 1
            self._died[place] = 0
            return answer


class EnvironmentActor:
    """The actor.

    Args:
        setup: Of the environments.
        engines: Actors of `glmcore.rl.ray_engine`.
    """

    def __init__(self, setup: EnvironmentSetup, engines: Sequence[Any]) -> None:
        self._life = new_life()
        self._family = open_family(setup.environment, setup.tasks)
        self._player = EpisodePlayer(
            RemoteEngines(engines),
            Tokenizer.from_pretrained(setup.tokenizer_directory),
            self._family.new,
            setup.limits,
            thinking=setup.environment.thinking,
        )
        self._playing: set[asyncio.Task[Played]] = set()

    async def status(self) -> str:
        """Says that the actor lives, and names its life. One whose environments block it does not answer."""
        return self._life

    async def begin(self) -> str:
        """Break off all rollouts, for a trainer that has just started; gives the name of this life."""
        for playing in list(self._playing):
            playing.cancel()
        await asyncio.gather(*self._playing, return_exceptions=True)
        return self._life

    async def play(self, task: Task, seed: int, sampling: SamplingParams) -> Played:
        """Play one episode, whatever its environment does."""
        playing = asyncio.create_task(self._play(task, seed, sampling))
        self._playing.add(playing)
        try:
            return await playing
        finally:
            self._playing.discard(playing)

    async def _play(self, task: Task, seed: int, sampling: SamplingParams) -> Played:
        row = Row()
        try:
            ending = await self._player.play(task, seed, sampling, row)
        except (EnvironmentFailure, RequestError) as error:
            return Played(row, None, str(error) or type(error).__name__)
        return Played(row, replace(ending, messages=[], tools=[]))


async def _ask(method: Any, *arguments: Any) -> Any:
    """Call an actor; gives up the call when the caller is cancelled, and raises what the method has raised."""
    import ray
    from ray.exceptions import RayTaskError

    call = method.remote(*arguments)
    try:
        return await call
    except asyncio.CancelledError:
        ray.cancel(call)
        raise
    except RayTaskError as error:
        raise (getattr(error, "cause", None) or error) from None
