"""Which rollouts run while the trainer trains: as many as there are slots, as far ahead as staleness allows."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from glmcore.engine.sampling import SamplingParams
from glmcore.envs.protocol import Task
from glmcore.errors import BufferFullError, GlmcoreError, RunError, StaleError
from glmcore.rl.async_sifting import Dropped, SiftingBuffer
from glmcore.rl.config import RLConfig
from glmcore.rl.curriculum.course import Course
from glmcore.rl.rollout import Attempt, Player, play_into
from glmcore.rl.seeds import seed_of
from glmcore.trajectory import TrajectoryBuffer

Follow = Callable[[int, Coroutine[Any, Any, None]], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class _Left:
    """A rollout that an earlier process had not brought to its end."""

    attempt: Attempt
    policy_version: int
    """The least that its tokens may be of."""


class RolloutScheduler:
    """Admits groups and plays their rollouts, in one event loop, until it is stopped.

    The buffer decides what may be admitted: only groups that will be trained on in time, so nothing that was sampled is
    ever thrown away for its age. An update of the weights interrupts no rollout; what it samples from then on has the
    new version.

    Args:
        config: Of the stage.
        course: Gives the tasks and how they are sampled; its tasks must bear to be asked from two threads.
        player: Plays rollouts.
        buffer: Holds the groups; rollouts that run in it are played again from their beginning.
        seed: Of the run.
        follow: Wraps each episode, by the number of its rollout.
    """

    def __init__(
        self,
        config: RLConfig,
        course: Course,
        player: Player,
        buffer: TrajectoryBuffer,
        seed: int,
        follow: Follow = lambda _, episode: episode,
    ) -> None:
        self.config = config
        self.course = course
        self.player = player
        self.sieve: SiftingBuffer | None = None
        """With dynamic sampling, where groups of equal rewards are dropped."""
        if config.dynamic_sampling is not None:
            self.sieve = SiftingBuffer.of(buffer, course.sampling.quota().most - config.groups_per_step)
        self.buffer = self.sieve or buffer
        self.seed = seed
        self.follow = follow
        self.slots = config.asynchronous.environment_slots or config.groups_per_step * config.rollouts_per_group
        self.error: Exception | None = None
        """Why no further rollout is played: the engine, the buffer or the task source failed."""
        self._version = 0
        self._changed = asyncio.Event()
        self._given: deque[Task] = deque()
        """Tasks of groups to come."""
        self._waiting: deque[Attempt] = deque()
        """Rollouts of admitted groups, to be played next."""
        self._left: list[_Left] = []
        self._admitted = 0
        """Groups admitted so far, which are numbered in this order."""
        self._playing: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[None] | None = None

    @property
    def num_playing(self) -> int:
        """Rollouts that run."""
        return len(self._playing)

    def resume(self, state: dict[str, Any]) -> None:
        """Take over what an earlier process has left in the buffer: rollouts that ran are played from the beginning.

        Args:
            state: `state_dict` of the checkpoint that the run goes on from; empty for none.

        Raises:
            RunError: The buffer has a task that the source does not know.
        """
        if state:
            self._given.extend(self._task(task) for task in state["given"])
        self._admitted = int(state.get("admitted", 0))
        groups = self.buffer.groups()
        admitted = max([self._admitted, *(group.group_id + 1 for group in groups)])
        for _ in range(admitted - self._admitted):
            self._next_task()  # that it was given to is in the buffer, or was dropped
            self._given.popleft()
        self._admitted = admitted
        versions = {group.group_id: group.policy_version for group in groups}
        if self.sieve is not None:
            self.sieve.follow_left()
        for line in self.buffer.running():
            group = line.group_id
            self.buffer.restart(line.rollout_id)
            self.buffer.set_timeout(line.rollout_id, None)
            place = self.buffer.rollouts(group).index(line.rollout_id)
            self._left.append(
                _Left(self._attempt(line.rollout_id, self._task(line.task), group, place), versions[group])
            )

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, plain JSON values."""
        return {
            "given": [task.id for task in self._given],
            "admitted": self._admitted,
        }

    def set_version(self, version: int) -> None:
        """The engines now hold the weights of this version, and the trainer is there too."""
        self._version = version
        self._changed.set()

    def take_dropped(self) -> list[Dropped]:
        """Groups that dynamic sampling has dropped since the last call."""
        return [] if self.sieve is None else self.sieve.take_dropped()

    def batch_taken(self) -> None:
        """The buffer may have room again."""
        self._changed.set()

    async def start(self) -> None:
        """Begin to play rollouts."""
        self._main = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Break off all rollouts; they stay in the buffer as running."""
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)

    async def _run(self) -> None:
        flushing = asyncio.create_task(self._flush())
        try:
            while self.error is None:
                if len(self._playing) < self.slots and (attempt := self._next()) is not None:
                    playing = asyncio.create_task(self.follow(attempt.rollout_id, self._play(attempt)))
                    self._playing.add(playing)
                    playing.add_done_callback(self._ended)
                    continue
                await self._changed.wait()
                self._changed.clear()
        except Exception as error:  # the trainer raises it
            self.error = error
        finally:
            flushing.cancel()
            for playing in self._playing:
                playing.cancel()
            await asyncio.gather(flushing, *self._playing, return_exceptions=True)

    async def _play(self, attempt: Attempt) -> None:
        settings = self.course.settings(attempt.step)
        sampling = SamplingParams(max_tokens=settings.max_response_tokens, temperature=settings.temperature)
        await play_into(self.buffer, self.player, attempt, sampling)

    def _ended(self, playing: asyncio.Task[None]) -> None:
        self._playing.discard(playing)
        if not playing.cancelled() and isinstance(error := playing.exception(), Exception) and self.error is None:
            self.error = error
        self._changed.set()

    def _next(self) -> Attempt | None:
        """The next rollout to play, if one may begin now."""
        for place, left in enumerate(self._left):
            if left.policy_version <= self._version:
                return self._left.pop(place).attempt
        if not self._waiting:
            self._admit()
        return self._waiting.popleft() if self._waiting else None

    def _admit(self) -> None:
        """Admit one more group, if it can be trained on in time and there is room."""
        if self.buffer.room(self._version) == 0:
            return
        task = self._next_task()
        try:
            group = self.buffer.admit(task.id, self.config.rollouts_per_group, self._version, sync=False)
        except (StaleError, BufferFullError):
            return
        self._given.popleft()
        self._admitted = group + 1
        if self.sieve is not None:
            self.sieve.follow(group, task.id)
        for place, rollout_id in enumerate(self.buffer.rollouts(group)):
            self._waiting.append(self._attempt(rollout_id, task, group, place))

    def _next_task(self) -> Task:
        if not self._given:
            self._given.extend(self.course.tasks.next(self.config.groups_per_step))
        return self._given[0]

    def _task(self, task_id: str) -> Task:
        try:
            return self.course.tasks.task(task_id)
        except KeyError:
            raise RunError(f"the buffer has a rollout of task {task_id!r}, which the recipe does not have") from None

    def _attempt(self, rollout_id: int, task: Task, group: int, place: int) -> Attempt:
        """With the seed of the same rollout in a synchronous run, where group after group is admitted too."""
        step, number = divmod(group, self.config.groups_per_step)
        return Attempt(rollout_id, task, seed_of(self.seed, step + 1, number, place), step + 1)

    async def _flush(self) -> None:
        """Keep the log on the disk little behind; rollouts that end meanwhile share the next commit."""
        while True:
            await asyncio.sleep(0.05)
            try:
                await asyncio.to_thread(self.buffer.flush)
            except GlmcoreError as error:
                self.error = self.error or error
                self._changed.set()
                return
