"""One episode: a model and an environment talk, token in and token out.

The ids that the model samples are kept as they are, and what the environment says is tokenised on its own and appended
as the chat template writes it. So no token that was sampled is ever tokenised again, the model reads exactly what is
trained on, and the context is kept however many turns there are.
"""

import asyncio
import contextlib
import math
import numbers
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from glmcore.chat import ChatFormat, Conversation, Message, parse_reply
from glmcore.engine.protocol import Samples
from glmcore.engine.request import Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.envs.config import EpisodeLimits
from glmcore.envs.protocol import Delegation, Environment, Start, StepResult, Task
from glmcore.envs.tool_format import calls_are_well_formed
from glmcore.errors import EnvironmentFailure, GlmcoreError, RequestError
from glmcore.rl.episode_record import Branch, EpisodeRecord, Recorder, Row
from glmcore.rl.seeds import seed_of
from glmcore.tokenizer import Tokenizer

Said = Mapping[str, Any]
T = TypeVar("T")
ROUNDING = 1e-6
"""So far may the sum of an episode's rewards be out of range: parts such as 1/3 have been rounded."""
_ROLES = ("tool", "user", "system")


@dataclass(frozen=True)
class Ending:
    """How an episode ended."""

    reward: float
    """Sum of `turn_rewards`, within the limits' range."""
    finish_reason: str
    """`stop` (the environment was done), `length` (an answer was cut off, or the context is full), `turns`, `time`, or
    `bad_tool_call` (one that is not in the model's format, for which the whole episode is worth 0)."""
    turn_rewards: list[float] = field(default_factory=list[float])
    parts: dict[str, float] = field(default_factory=dict[str, float])
    branches: list[Branch] = field(default_factory=list[Branch])
    """Conversations of sub-agents, in the order in which they ended."""
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The whole conversation, for people."""
    tools: list[Said] = field(default_factory=list[Said])

    @property
    def record(self) -> EpisodeRecord:
        """What belongs into the buffer beside the tokens."""
        return EpisodeRecord(self.turn_rewards, self.parts, self.branches)


async def play(
    env: Environment[Any],
    task: Task,
    engine: Samples,
    tokenizer: Tokenizer,
    limits: EpisodeLimits,
    recorder: Recorder,
    seed: int,
    *,
    sampling: SamplingParams,
    priority: int = 0,
    thinking: bool = True,
    format: ChatFormat = "glm-4.5",
) -> Ending:
    """Play one episode to its end and close its environment.

    An answer that is cut off is judged if it has no tool call, and is the last one. One that the engine gives up
    (`abort`) goes on from where it was with the engine's next weights.

    Args:
        env: Fresh; closed afterwards, whatever happens.
        task: What it is to pose.
        engine: Draws the answers.
        tokenizer: Of the engine's model.
        limits: With `max_context`; see `EpisodeLimits.within`.
        recorder: Takes down the main conversation.
        seed: The first answer is drawn with it, later ones with seeds that follow from it.
        sampling: How answers are drawn; `max_tokens` of each, `seed` is not used.
        priority: For the engine.
        thinking: False asks for answers without thinking.
        format: Of the model's conversations.

    Raises:
        EnvironmentFailure: The environment broke down, hung or gave garbage; says which. There is no reward.
        RequestError: `limits.max_context` is None, or the engine refuses a request.
    """
    if limits.max_context is None:
        raise RequestError("limits.max_context is not set: use limits.within(what the model can read)")
    table = _Table(engine, tokenizer, limits, limits.max_context, sampling, priority, thinking, format)
    return await _Episode(table, env, (seed,)).play(task, recorder)


@dataclass
class _Table:
    """What an episode shares with its sub-agents."""

    engine: Samples
    tokenizer: Tokenizer
    limits: EpisodeLimits
    max_context: int
    sampling: SamplingParams
    priority: int
    thinking: bool
    format: ChatFormat
    branches: list[Branch] = field(default_factory=list[Branch])
    num_branches: int = 0

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.limits.episode_seconds

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


class _OverError(Exception):
    """The episode ends before the environment is done."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _TooLateError(Exception):
    """Something took more time than it had."""


class _Episode:
    """One conversation, of the agent or of a sub-agent."""

    def __init__(self, table: _Table, env: Environment[Any], place: tuple[int, ...]) -> None:
        self.table = table
        self.env = env
        self.place = place
        self.rewards: list[float] = []
        self.parts: dict[str, float] = {}
        self.messages: list[dict[str, Any]] = []
        self.tools: list[Said] = []
        self.num_branches = 0

    async def play(self, task: Task, recorder: Recorder) -> Ending:
        try:
            reason = await self._play(task, recorder)
        except BaseException:  # that one is to be told, whatever closing brings
            with contextlib.suppress(EnvironmentFailure):
                await self._ask("close", self.env.close)
            raise
        await self._ask("close", self.env.close)
        if reason == "bad_tool_call":
            self.rewards = [0.0] * len(self.rewards)
        return Ending(
            self._reward(reason), reason, self.rewards, self.parts, self.table.branches, self.messages, self.tools
        )

    def _reward(self, reason: str) -> float:
        low, high = self.table.limits.reward_range
        reward = math.fsum(self.rewards)
        if reason == "bad_tool_call" or low <= reward <= high:
            return reward
        if low - ROUNDING <= reward <= high + ROUNDING:
            return min(high, max(low, reward))
        raise EnvironmentFailure(f"the reward {reward} is not between {low} and {high}")

    async def _play(self, task: Task, recorder: Recorder) -> str:
        """The conversation; gives the reason of its end."""
        table = self.table
        given = 0  # tokens that the recorder has
        try:
            conversation = self._open(await self._ask("reset", lambda: self.env.reset(task), Start))
            for turn in range(table.limits.max_turns):
                prompt = conversation.prompt()
                generation = await self._generate(prompt.tolist(), turn)
                recorder.prompt(prompt[given:])
                recorder.answer(generation.token_ids, generation.logprobs, generation.policy_versions)
                given = len(prompt) + len(generation.token_ids)
                self.rewards.append(0.0)
                observations = await self._judge(generation)
                conversation.add_sampled(generation.token_ids)
                for said in observations:
                    self._hear(conversation, said)
        except _OverError as over:
            if not self.rewards and len(self.place) == 1:
                raise EnvironmentFailure(f"the episode ended before the first answer: {over.reason}") from None
            return over.reason
        return "turns"

    def _open(self, start: Start) -> Conversation:
        self.tools = list(start.tools)
        self._check_size(start.messages)
        try:
            conversation = Conversation(
                self.table.tokenizer, self.tools or None, self.table.thinking, format=self.table.format
            )
        except GlmcoreError as error:
            raise EnvironmentFailure(f"reset gave tools that cannot be written: {error}") from None
        for said in start.messages:
            self._hear(conversation, said)
        return conversation

    def _hear(self, conversation: Conversation, said: Said) -> None:
        try:
            conversation.add(said)
        except GlmcoreError as error:
            raise EnvironmentFailure(f"the environment said what cannot be written: {error}") from None
        self.messages.append(dict(said))

    async def _generate(self, prompt: list[int], turn: int) -> Generation:
        """Sample one answer; one that the engine gave up is continued."""
        table, whole = self.table, Generation()
        seed = self.place[0] if len(self.place) == 1 and turn == 0 else seed_of(*self.place, turn)
        room = min(table.sampling.max_tokens, table.max_context - len(prompt))
        whole.finish_reason = "length"
        while len(whole.token_ids) < room:
            params = table.sampling.for_answer(room - len(whole.token_ids), seed)
            asked = table.engine.generate([*prompt, *whole.token_ids], params, priority=table.priority)
            try:
                [part] = await _within(asked, table.seconds_left)
            except _TooLateError:
                raise _OverError("time") from None
            whole.token_ids += part.token_ids
            whole.logprobs += part.logprobs
            whole.policy_versions += part.policy_versions
            whole.finish_reason = part.finish_reason
            if part.finish_reason != "abort":
                return whole
            seed = seed_of(seed, len(whole.token_ids))
        if not whole.token_ids:
            raise _OverError("length")
        whole.finish_reason = "length"
        return whole

    async def _judge(self, generation: Generation) -> Sequence[Said]:
        """Let the environment answer a message; gives what it says, or ends the episode."""
        table = self.table
        reply = table.tokenizer.decode(generation.token_ids, skip_special_tokens=True)
        in_thinking = table.format == "glm-4.7" and table.thinking
        message = parse_reply(reply, tools=self.tools or None, in_thinking=in_thinking)
        self.messages.append(_as_dict(message))
        cut_off = generation.finish_reason == "length"
        if not calls_are_well_formed(reply, message):
            raise _OverError("length" if cut_off else "bad_tool_call")
        if cut_off and message.tool_calls:
            raise _OverError("length")
        result = await self._ask("step", lambda: self.env.step(message), StepResult)
        self._take_rewards(result)
        if cut_off or result.done:
            raise _OverError("length" if cut_off else "stop")
        return await self._delegate(result.observations)

    def _take_rewards(self, result: StepResult) -> None:
        for name, value in (("reward", result.reward), *result.parts.items()):
            if not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise EnvironmentFailure(f"step gave the {name} {value!r}, which is no finite number")
        self.rewards[-1] = float(result.reward)
        for name, value in result.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + float(value)
        if not result.done:
            self._check_size([said for said in result.observations if not isinstance(said, Delegation)])
            if not result.observations:
                raise EnvironmentFailure("step was not done and said nothing")

    def _check_size(self, messages: Sequence[Said]) -> None:
        most = self.table.limits.max_observation_chars
        size = 0
        for said in messages:
            if not isinstance(said, Mapping) or said.get("role") not in _ROLES:
                raise EnvironmentFailure(f"the environment said {str(said)[:80]!r}, no message of {', '.join(_ROLES)}")
            size += len(str(said.get("content", "")))
        if size > most:
            raise EnvironmentFailure(f"the environment said {size} characters at once, more than {most}")

    async def _delegate(self, observations: Sequence[Said | Delegation]) -> list[Said]:
        """Replace delegations by what the sub-agents found, all at work together."""
        work = [asyncio.ensure_future(self._observe(said)) for said in observations]
        try:
            return await asyncio.gather(*work)
        except BaseException:
            for part in work:
                part.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            raise

    async def _observe(self, said: Said | Delegation) -> Said:
        if not isinstance(said, Delegation):
            return said
        if self.table.num_branches >= self.table.limits.max_branches:
            return {"role": "tool", "content": "error: no further sub-agent may be started"}
        self.table.num_branches += 1
        self.num_branches += 1
        row = Row()
        # 2**32 - 1 is no turn, so a branch shares no seed with one.
        place = (*self.place, 2**32 - 1, self.num_branches)
        ending = await _Episode(self.table, said.environment, place).play(said.task, row)
        judged = said.judged or ending.finish_reason == "bad_tool_call"
        if row.ids:
            self.table.branches.append(Branch(row, ending.finish_reason, ending.reward if judged else None))
        last = ending.messages[-1] if ending.messages else {}
        answer = last.get("content", "") if last.get("role") == "assistant" else ""
        return {"role": "tool", "content": answer or f"error: the sub-agent gave no answer ({ending.finish_reason})"}

    async def _ask(self, what: str, ask: Callable[[], Awaitable[T]], kind: type = object) -> T:
        """Wait for the environment, but not for ever, and turn whatever it does wrong into one kind of error."""
        limit = self.table.limits.step_seconds
        left = math.inf if what == "close" else self.table.seconds_left
        try:
            if getattr(self.env, "answers_at_once", False):
                answer = _at_once(ask())
            else:
                answer = await _within(ask(), min(limit, left))
        except _TooLateError:
            if left < limit:
                raise _OverError("time") from None
            raise EnvironmentFailure(f"{what} took more than {limit} s") from None
        except EnvironmentFailure:
            raise
        except Exception as error:  # whatever an environment does wrong is the end of its episode alone
            raise EnvironmentFailure(f"{what} raised {type(error).__name__}: {error}") from error
        if not isinstance(answer, kind):
            raise EnvironmentFailure(f"{what} gave {str(answer)[:80]!r}, no {kind.__name__}")
        return answer


def _at_once(asked: Awaitable[T]) -> T:
    """The result of something that does not wait.

    Raises:
        EnvironmentFailure: It does.
    """
    steps = asked.__await__()
    try:
        next(steps)
    except StopIteration as end:
        return end.value
    steps.close()
    raise EnvironmentFailure("the environment waits, though it says that it answers at once")


async def _within(asked: Awaitable[T], seconds: float) -> T:
    """Wait for so long. What does not even end when it is cancelled is left behind, for it must not hold up others.

    Raises:
        _TooLateError: It has not ended.
    """
    work = asyncio.ensure_future(asked)
    try:
        await asyncio.wait([work], timeout=max(0.0, seconds))
    finally:
        if not work.done():
            work.cancel()
            work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    if not work.done():
        raise _TooLateError
    return work.result()


def _as_dict(message: Message) -> dict[str, Any]:
    """The message as `glmcore.chat` takes it."""
    said: dict[str, Any] = {"role": "assistant", "content": message.content}
    if message.reasoning_content:
        said["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        said["tool_calls"] = [{"function": {"name": c.name, "arguments": c.arguments}} for c in message.tool_calls]
    return said
