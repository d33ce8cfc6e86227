"""Iterative distillation: episodes of the RL policy, filtered, become the SFT data of the next round.

An episode is kept as it was heard and said: the environment's messages and tools, the policy's answers with their
thinking and tool calls. A single question with its answer is the shortest of them. Conversations of sub-agents are not
kept.

Source: GLM-4.5 (arXiv:2508.06471), section 3.3: reinforcement learning to a plateau, its answers in the place of the
cold-start data, SFT, and reinforcement learning on harder tasks; the filters are those of section 3.1.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from glmcore.durable import write_file
from glmcore.envs.protocol import Task
from glmcore.progress import progress, say
from glmcore.recipe import Recipe
from glmcore.rl.distill_config import DistillConfig
from glmcore.rl.pool import training_pool
from glmcore.rl.probe import attempt_seed
from glmcore.rl.result_file import ResultFile, read_results
from glmcore.rl.rollout import Rollout, RolloutWorker
from glmcore.rl.stage import load_policy, new_worker
from glmcore.rundir import RunDirectory, open_run

NGRAM = 8
"""Tokens of the pieces whose repetition is counted."""
_FORMAT = 2
"""Of the file of answers: episodes with their messages."""


@dataclass(frozen=True)
class Answer:
    """One episode of the policy."""

    text: str
    """All that the policy said, thinking included."""
    num_tokens: int
    """That the policy sampled."""
    reward: float
    finish_reason: str
    repetition: float
    """`repetition` of its tokens."""
    parts: dict[str, float] = field(default_factory=dict[str, float])
    """What the reward was made of."""
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The whole conversation."""
    tools: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """That it was offered."""

    @property
    def num_turns(self) -> int:
        """Messages of the policy."""
        return sum(message["role"] == "assistant" for message in self.messages)


def run(recipe: Recipe) -> dict[str, int]:
    """Make SFT data with the newest weights of a run; goes on where an earlier call stopped.

    Writes `distilled/sft.jsonl` into the run directory: a conversation a line, which `glmcore data prepare` reads as a
    source of kind `conversations`. Gives the number of answers kept, and dropped for each reason.

    Raises:
        RunError: The training stages are not finished, the run directory is in use, or `distilled` belongs to other
            settings or weights.
    """
    with open_run(recipe) as directory:
        return distill(directory)


def distill(run: RunDirectory[Recipe]) -> dict[str, int]:
    """The distillation of an open run; see `run`."""
    config = run.recipe.rl.distill
    model, done = load_policy(run)
    with new_worker(run, model) as worker:
        worker.temperature = run.recipe.rl.temperature if config.temperature is None else config.temperature
        tasks = training_pool(run.recipe).tasks[: config.num_tasks]
        asked = {
            "format": _FORMAT,
            "stage": done.stage_index,
            "step": done.step,
            "temperature": worker.temperature,
            "max_response_tokens": worker.max_tokens,
            "num_samples": config.num_samples,
            "seed": config.seed,
        }
        answers = run.distilled / "answers.jsonl"
        file = ResultFile(answers, asked)
        try:
            _sample(tasks, worker, file, config)
        finally:
            file.close()
        wanted = {task.id for task in tasks}
        by_task = {
            line["id"]: [Answer(**answer) for answer in line["answers"]]
            for line in read_results(answers)
            if line["id"] in wanted
        }
        kept, dropped = select(by_task, config)
        lines = [
            json.dumps(conversation(id_, answer), ensure_ascii=False)
            for id_, chosen in kept.items()
            for answer in chosen
        ]
        write_file(run.distilled / "sft.jsonl", "".join(f"{line}\n" for line in lines))
    say(f"{len(lines):,} of {sum(map(len, by_task.values())):,} answers kept: {run.distilled / 'sft.jsonl'}")
    return {"kept": len(lines), **dropped}


def select(
    answers: Mapping[str, Sequence[Answer]], config: DistillConfig
) -> tuple[dict[str, list[Answer]], dict[str, int]]:
    """The answers to keep of each task, and how many were dropped for which reason.

    Args:
        answers: All answers of each task.
        config: The filters, which are applied in the order of their reasons below.
    """
    dropped: Counter[str] = Counter()
    kept: dict[str, list[Answer]] = {}
    for task, every in answers.items():
        good: list[Answer] = []
        for answer in every:
            reason = _fault(answer, config) or ("duplicate" if answer.text in {g.text for g in good} else None)
            if reason is None:
                good.append(answer)
            else:
                dropped[reason] += 1
        solved = float(np.mean([answer.reward >= config.min_reward for answer in every]))
        most = config.keep_per_task if solved >= config.hard_rate else config.keep_per_hard_task
        dropped["surplus"] += len(good[most:])
        if good:
            kept[task] = good[:most]
    by_length = sorted(kept, key=lambda task: (np.mean([answer.num_tokens for answer in kept[task]]), task))
    for task in by_length[: math.floor(config.drop_shortest_share * len(by_length))]:
        dropped["among the shortest"] += len(kept.pop(task))
    return kept, dict(dropped)


def repetition(ids: Sequence[int]) -> float:
    """Share of the pieces of `NGRAM` tokens that have come before in the same answer, in [0, 1)."""
    pieces = [tuple(ids[start : start + NGRAM]) for start in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0


def conversation(id_: str, answer: Answer) -> dict[str, Any]:
    """An episode as a line of SFT data: `id`, `messages`, and `tools` if there were any."""
    line: dict[str, Any] = {"id": id_, "messages": answer.messages}
    return line | {"tools": answer.tools} if answer.tools else line


def _fault(answer: Answer, config: DistillConfig) -> str | None:
    if answer.finish_reason != "stop":
        return "cut off"
    if answer.reward < config.min_reward:
        return "low reward"
    if any(answer.parts.get(name, 0.0) < least for name, least in config.min_parts.items()):
        return "no success"
    if answer.num_tokens < config.min_tokens:
        return "too short"
    if config.max_tokens is not None and answer.num_tokens > config.max_tokens:
        return "too long"
    if config.max_turns is not None and answer.num_turns > config.max_turns:
        return "too many turns"
    return "repetitive" if answer.repetition > config.max_repetition else None


def _sample(tasks: Sequence[Task], worker: RolloutWorker, file: ResultFile, config: DistillConfig) -> None:
    """Answer every task that `file` lacks; each is recorded when all of its answers are there."""
    waiting = [task for task in tasks if task.id not in file.done]
    size = max(worker.max_sequences // config.num_samples, 1)
    with progress("distill", total=len(tasks), unit="tasks") as bar:
        bar.skip(len(tasks) - len(waiting))
        for start in range(0, len(waiting), size):
            chosen = waiting[start : start + size]
            rollouts = worker.roll_out(
                [task for task in chosen for _ in range(config.num_samples)],
                [attempt_seed(config.seed, task.id, i) for task in chosen for i in range(config.num_samples)],
            )
            for place, task in enumerate(chosen):
                part = rollouts[place * config.num_samples : (place + 1) * config.num_samples]
                file.add(task.id, answers=[asdict(answer_of(rollout)) for rollout in part])
            bar.advance(len(chosen))


def answer_of(rollout: Rollout) -> Answer:
    """What is kept of a rollout."""
    ids, ending = rollout.sampled_ids, rollout.ending
    messages, tools = list(map(dict, ending.messages)), list(map(dict, ending.tools))
    repeated = repetition(ids)
    return Answer(
        rollout.reply, len(ids), rollout.reward, ending.finish_reason, repeated, ending.parts, messages, tools
    )
