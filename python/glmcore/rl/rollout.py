"""Rollouts: the engine answers a task, the environment judges the answer."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from glmcore.chat import apply_chat_template, parse_reply
from glmcore.data.reasoning import Problem
from glmcore.engine.engine import Engine
from glmcore.engine.request import Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.envs.protocol import Environment
from glmcore.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rollout:
    """One attempt at one task."""

    problem: Problem
    prompt_ids: list[int]
    generation: Generation
    reply: str
    """Text of the answer, thinking included."""
    reward: float


def rollout_seed(*place: int) -> int:
    """Seed of one rollout from the run's seed and the rollout's place, independent of every other place."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])


class RolloutWorker:
    """Answers tasks with an engine and has an environment judge each answer.

    Args:
        engine: Draws the tokens; its policy version marks them.
        tokenizer: Renders prompts and reads replies.
        new_environment: Makes the environment of one episode.
        max_tokens: Most tokens of an answer.
        temperature: Of sampling.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        new_environment: Callable[[], Environment],
        *,
        max_tokens: int,
        temperature: float,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.new_environment = new_environment
        self.max_tokens = max_tokens
        self.temperature = temperature

    def roll_out(
        self,
        problems: Sequence[Problem],
        seeds: Sequence[int],
        on_tokens: Callable[[int], None] = lambda _: None,
    ) -> list[Rollout]:
        """One rollout for each problem, in order, the i-th drawn with the i-th seed."""
        return asyncio.run(self._roll_out(problems, seeds, on_tokens))

    async def _roll_out(
        self, problems: Sequence[Problem], seeds: Sequence[int], on_tokens: Callable[[int], None]
    ) -> list[Rollout]:
        environments = [self.new_environment() for _ in problems]
        starts = await asyncio.gather(
            *(environment.reset(problem) for environment, problem in zip(environments, problems, strict=True))
        )
        prompts = [
            apply_chat_template(self.tokenizer, messages, add_generation_prompt=True).ids.tolist()
            for messages in starts
        ]
        params = [SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature, seed=seed) for seed in seeds]
        generations = self.engine.generate(prompts, params, on_tokens)
        replies = [self._reply(generation) for generation in generations]
        results = await asyncio.gather(
            *(environment.step(parse_reply(reply)) for environment, reply in zip(environments, replies, strict=True))
        )
        return [
            Rollout(problem, prompt, generation, reply, result.reward)
            for problem, prompt, generation, reply, result in zip(
                problems, prompts, generations, replies, results, strict=True
            )
        ]

    def _reply(self, generation: Generation) -> str:
        return self.tokenizer.decode(generation.token_ids, skip_special_tokens=True)
