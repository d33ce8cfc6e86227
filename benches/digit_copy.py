"""A task that a tiny model learns in minutes, with environments as slow as one likes: say a digit eight times.

The reward is the share of eight characters that are the digit of the question. What an environment takes for its
judgement is drawn from the rollout's seed, so every way of training meets the same delays.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from glmcore import train_tokenizer
from glmcore.chat import Message, apply_chat_template
from glmcore.envs.protocol import Item, Split, Start, StepResult
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.layout import DocumentLayout
from glmcore.tokenizer import Tokenizer

ANSWER_TOKENS = 8
VOCAB_SIZE = 292
"""The bytes and the special tokens: every digit is a token of its own."""

COPY_SHARE = 0.3
"""Share of characters that the prepared model has learnt to say rightly, beyond chance."""


class Clocks:
    """Time since a run began: of the wall, of the process, of the thread that trains."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """The run begins, in this thread."""
        self._begun = (time.perf_counter(), time.process_time(), time.thread_time())

    @property
    def seconds(self) -> float:
        """Of the wall."""
        return time.perf_counter() - self._begun[0]

    def figures(self) -> dict[str, float]:
        """Asked in the thread that began it."""
        return {
            "cpu_s": time.process_time() - self._begun[1],
            "trainer_cpu_s": time.thread_time() - self._begun[2],
        }


Latency = Callable[[np.random.Generator], float]
"""Seconds that an environment takes."""

LATENCIES: dict[str, Latency | None] = {
    "none": None,
    "constant": lambda _: 0.1,
    "lognormal": lambda random: 0.02 * math.exp(1.5 * random.standard_normal()),
    "uneven": lambda random: float(random.choice([0.0, 0.0, 0.02])),
    "pareto": lambda random: min(1.0, 0.02 * (1.0 + random.pareto(1.2))),
}


def tiny_tokenizer() -> Tokenizer:
    """Bytes, and the special tokens of the chat format."""
    return train_tokenizer(["0123456789"] * 4, VOCAB_SIZE, progress=False)


def tiny_config(tokenizer: Tokenizer, **fields: Any) -> GlmConfig:
    """About 133 thousand parameters."""
    stops = [tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    size: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 32,
        "num_nextn_predict_layers": 0,
        "max_position_embeddings": 64,
        "rope_theta": 10_000.0,
        "eos_token_id": stops,
        "pad_token_id": stops[0],
    }
    return GlmConfig(**(size | fields))


def digit_tasks(count: int, seed: int = 0) -> list[Item]:
    """Questions with ids of their own: `7#12` asks for 7."""
    digits = np.random.default_rng(seed).integers(0, 10, count)
    return [Item(f"{digit}#{place}", {"digit": str(digit)}) for place, digit in enumerate(digits)]


def reward_of(text: str, digit: str) -> float:
    """Share of the eight characters that are the digit."""
    return text[:ANSWER_TOKENS].count(digit) / ANSWER_TOKENS


def delay_of(latency: Latency | None, task: str, attempt: int) -> float:
    """Seconds that the environment takes for an attempt at a task, the same for everybody who asks."""
    return 0.0 if latency is None else latency(np.random.default_rng([*task.encode(), attempt]))


class DigitEnv:
    """One question; the n-th environment of a task is its n-th attempt."""

    def __init__(self, family: "DigitFamily") -> None:
        self._family = family
        self._task = Item("")
        self._delay = 0.0
        self.attempt = 0

    @property
    def answers_at_once(self) -> bool:
        """See `Environment`."""
        return self._family.latency is None

    async def reset(self, task: Item) -> Start:
        """Pose the question."""
        self._task = task
        self.attempt = self._family.attempts.get(task.id, 0)
        self._family.attempts[task.id] = self.attempt + 1
        self._delay = delay_of(self._family.latency, task.id, self.attempt)
        return Start([{"role": "user", "content": task.data["digit"]}])

    async def step(self, message: Message) -> StepResult:
        """Judge the answer, after a while."""
        if self._delay:
            await asyncio.sleep(self._delay)
            self._family.work_s += self._delay
        return StepResult(reward=reward_of(message.content, self._task.data["digit"]), done=True)

    async def close(self) -> None:
        """Nothing is held."""


@dataclass
class DigitFamily:
    """Environments with one latency."""

    latency: Latency | None
    num_tasks: int = 4096

    def __post_init__(self) -> None:
        self.attempts: dict[str, int] = {}
        self.work_s = 0.0
        """Time of judgements so far."""

    def tasks(self, split: Split, count: int, seed: int) -> Sequence[Item]:
        """Questions of a split."""
        return digit_tasks(count, seed + (split == "held_out"))

    def new(self) -> DigitEnv:
        """The environment of one more attempt."""
        return DigitEnv(self)

    def close(self) -> None:
        """Nothing is held."""


def digit_family(options: dict[str, Any], names: list[str]) -> DigitFamily:
    """For `rl.environment` of a recipe: `{ name = "custom", factory = "digit_copy:digit_family" }`."""
    del names
    return DigitFamily(LATENCIES[options.get("latency", "none")])


def prompt_ids(tokenizer: Tokenizer, digit: str) -> list[int]:
    """What the model reads."""
    messages = [{"role": "user", "content": digit}]
    return apply_chat_template(tokenizer, messages, thinking=False, add_generation_prompt=True).ids.tolist()


def prepared_model(tokenizer: Tokenizer, seed: int = 0, steps: int = 60) -> Glm:
    """A model that answers in digits and has begun to see that the question matters: where reinforcement begins."""
    model = Glm(tiny_config(tokenizer)).init_weights(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    random = np.random.default_rng(seed)
    for _ in range(steps):
        rows: list[int] = []
        places: list[int] = []
        lengths: list[int] = []
        for _ in range(32):
            digit = int(random.integers(10))
            prompt = prompt_ids(tokenizer, str(digit))
            digits = np.where(random.random(ANSWER_TOKENS) < COPY_SHARE, digit, random.integers(0, 10, ANSWER_TOKENS))
            answer = tokenizer.encode("".join(map(str, digits)))
            places += range(len(rows) + len(prompt), len(rows) + len(prompt) + len(answer))
            rows += [*prompt, *answer]
            lengths.append(len(prompt) + len(answer))
        ids = torch.tensor(rows)
        positions = torch.cat([torch.arange(length) for length in lengths])
        layout = DocumentLayout.from_cu_seqlens(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
        target = torch.tensor(places)
        hidden = model(ids, positions, layout).hidden[target - 1]
        loss = torch.nn.functional.cross_entropy(model.logits(hidden), ids[target])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model
