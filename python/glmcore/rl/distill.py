"""Iterative distillation: answers of the RL policy, filtered, become the SFT data of the next round.

Source: GLM-4.5 (arXiv:2508.06471), section 3.3: reinforcement learning to a plateau, its answers in the place of the
cold-start data, SFT, and reinforcement learning on harder tasks; the filters are those of section 3.1.
"""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from glmcore.chat import parse_reply
from glmcore.data.reasoning import Problem
from glmcore.durable import write_file
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


@dataclass(frozen=True)
class Answer:
    """One answer of the policy."""

    text: str
    """The reply, thinking included."""
    num_tokens: int
    reward: float
    finish_reason: str
    repetition: float
    """`repetition` of its tokens."""


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
    worker = new_worker(run, model)
    worker.temperature = run.recipe.rl.temperature if config.temperature is None else config.temperature
    tasks = training_pool(run.recipe).tasks[: config.num_tasks]
    asked = {
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
    prompts = {task.id: asyncio.run(worker.new_environment().reset(task)).messages for task in tasks if task.id in kept}
    lines = [
        json.dumps({"id": id_, "messages": conversation(prompts[id_], answer)}, ensure_ascii=False)
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


def conversation(prompt: Sequence[Mapping[str, Any]], answer: Answer) -> list[dict[str, Any]]:
    """The prompt's messages and the answer as a message, its thinking apart."""
    reply = parse_reply(answer.text)
    message: dict[str, Any] = {"role": "assistant", "content": reply.content}
    if reply.reasoning_content:
        message["reasoning_content"] = reply.reasoning_content
    return [*map(dict, prompt), message]


def _fault(answer: Answer, config: DistillConfig) -> str | None:
    if answer.finish_reason != "stop":
        return "cut off"
    if answer.reward < config.min_reward:
        return "low reward"
    if answer.num_tokens < config.min_tokens:
        return "too short"
    return "repetitive" if answer.repetition > config.max_repetition else None


def _sample(tasks: Sequence[Problem], worker: RolloutWorker, file: ResultFile, config: DistillConfig) -> None:
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
                file.add(task.id, answers=[asdict(_answer(rollout)) for rollout in part])
            bar.advance(len(chosen))


def _answer(rollout: Rollout) -> Answer:
    ids = rollout.sampled_ids
    return Answer(rollout.reply, len(ids), rollout.reward, rollout.ending.finish_reason, repetition(ids))
