"""Rollouts: an environment poses a task, the engine answers, the environment judges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from glmcore.engine.engine import Engine
from glmcore.engine.protocol import Samples
from glmcore.engine.sampling import SamplingParams
from glmcore.envs.config import EpisodeLimits
from glmcore.envs.protocol import Environment, Task
from glmcore.errors import EnvironmentFailure, RequestError, TrajectoryError
from glmcore.rl.episode import Ending, play
from glmcore.rl.episode_record import Recorder, Row
from glmcore.rl.lockstep import LockstepEngine
from glmcore.rl.measured import MeasuredEnvironment
from glmcore.rl.recorder import whole_rollout
from glmcore.rl.timeline import Timeline
from glmcore.tokenizer import Tokenizer
from glmcore.trajectory import TrajectoryBuffer, WholeRollout

CLOSING_SECONDS = 30.0
"""What the buffer waits for a rollout beyond the time limits of its episode, which end it if anything works at all."""


class Player(Protocol):
    """Plays episodes."""

    limits: EpisodeLimits

    async def play(self, task: Task, seed: int, sampling: SamplingParams, recorder: Recorder) -> Ending:
        """Play one; see `glmcore.rl.episode.play`."""
        ...


class EpisodePlayer:
    """Plays episodes with an engine and environments of this process.

    Args:
        engine: Draws the tokens.
        tokenizer: Of its model.
        new_environment: Makes the environment of one episode.
        limits: Of an episode; `max_context` must be set.
        thinking: False asks for answers without thinking.
        timeline: Gets the intervals in which environments work.
    """

    def __init__(
        self,
        engine: Samples,
        tokenizer: Tokenizer,
        new_environment: Callable[[], Environment[Any]],
        limits: EpisodeLimits,
        *,
        thinking: bool = True,
        timeline: Timeline | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.new_environment = new_environment
        self.limits = limits
        self.thinking = thinking
        self.timeline = timeline

    async def play(self, task: Task, seed: int, sampling: SamplingParams, recorder: Recorder) -> Ending:
        """See `Player.play`."""
        environment = self.new_environment()
        if self.timeline is not None:
            environment = MeasuredEnvironment(environment, self.timeline)
        return await play(
            environment,
            task,
            self.engine,
            self.tokenizer,
            self.limits,
            recorder,
            seed,
            sampling=sampling,
            thinking=self.thinking,
        )


@dataclass(frozen=True)
class Attempt:
    """A rollout of the buffer that is to be played."""

    rollout_id: int
    task: Task
    seed: int
    step: int
    """Whose settings it is sampled with."""


async def play_into(buffer: TrajectoryBuffer, player: Player, attempt: Attempt, sampling: SamplingParams) -> None:
    """Play one attempt; its tokens and its end, or its failure, go into the buffer.

    An environment that raises, hangs or gives garbage fails this rollout alone.

    Raises:
        GlmcoreError: The engine, or the buffer, can do nothing more for any rollout.
    """
    rollout_id = attempt.rollout_id
    limits = player.limits
    try:
        buffer.set_timeout(rollout_id, limits.episode_seconds + limits.step_seconds + CLOSING_SECONDS)
        row = Row()
        try:
            ending = await player.play(attempt.task, attempt.seed, sampling, row)
        except (EnvironmentFailure, RequestError) as error:
            whole = whole_rollout(rollout_id, row, None, str(error) or type(error).__name__)
        else:
            extra = replace(ending.record, temperature=sampling.temperature).to_bytes()
            whole = whole_rollout(rollout_id, row, ending.reward, ending.finish_reason, extra)
        buffer.write([whole])
    except TrajectoryError:
        if any(line.rollout_id == rollout_id for line in buffer.running()):
            raise
        # The buffer has ended it at its time limit and told the trainer; what came later is of no use.


@dataclass(frozen=True)
class Rollout:
    """One attempt at one task, outside of any buffer."""

    problem: Any
    """The task."""
    row: Row
    """Tokens of the conversation."""
    ending: Ending
    reply: str
    """Text of the answers, thinking included."""
    failed: str | None = None
    """What the environment did wrong, if it did; the reward is then 0."""

    @property
    def reward(self) -> float:
        """What the environment gave."""
        return self.ending.reward

    @property
    def sampled_ids(self) -> list[int]:
        """Tokens that the policy sampled."""
        return [token for token, mask in zip(self.row.ids, self.row.loss_mask, strict=True) if mask]

    def as_rollout(self, rollout_id: int) -> WholeRollout:
        """What makes it that rollout of a buffer."""
        if self.failed is not None:
            return whole_rollout(rollout_id, self.row, None, self.failed)
        ending = self.ending
        return whole_rollout(rollout_id, self.row, self.reward, ending.finish_reason, ending.record.to_bytes())


class RolloutWorker:
    """Answers tasks with an engine of this process, always the same way; see `LockstepEngine`.

    Args:
        engine: Draws the tokens; its policy version marks them.
        tokenizer: Renders prompts and reads replies.
        new_environment: Makes the environment of one episode.
        max_tokens: Most tokens of an answer.
        temperature: Of sampling.
        limits: Of an episode.
        thinking: False asks for answers without thinking.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        new_environment: Callable[[], Environment[Any]],
        *,
        max_tokens: int,
        temperature: float,
        limits: EpisodeLimits = EpisodeLimits(),  # noqa: B008 (frozen)
        thinking: bool = True,
    ) -> None:
        self.engine = engine
        self.new_environment = new_environment
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.lockstep = LockstepEngine(engine)
        limits = limits.within(engine.model.config.max_position_embeddings)
        self.player = EpisodePlayer(self.lockstep, tokenizer, new_environment, limits, thinking=thinking)

    @property
    def max_sequences(self) -> int:
        """Rollouts that the engine decodes together."""
        return self.engine.config.max_sequences

    def roll_out(
        self,
        tasks: Sequence[Task],
        seeds: Sequence[int],
        on_tokens: Callable[[int], None] = lambda _: None,
    ) -> list[Rollout]:
        """One rollout for each task, in order, the i-th drawn with the i-th seed."""
        self.lockstep.on_tokens = on_tokens
        sampling = SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature)
        return self.lockstep.play([self._play(*each, sampling) for each in zip(tasks, seeds, strict=True)])

    async def _play(self, task: Task, seed: int, sampling: SamplingParams) -> Rollout:
        row, failed = Row(), None
        try:
            ending = await self.player.play(task, seed, sampling, row)
        except (EnvironmentFailure, RequestError) as error:
            ending, failed = Ending(0.0, "failed"), str(error) or type(error).__name__
        sampled = [token for token, mask in zip(row.ids, row.loss_mask, strict=True) if mask]
        reply = self.player.tokenizer.decode(sampled, skip_special_tokens=True)
        return Rollout(task, row, ending, reply, failed)
