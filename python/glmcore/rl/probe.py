"""The offline pass over the training tasks: how often the policy solves each, as cheaply as its class can be told."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from glmcore.data.reasoning import Problem
from glmcore.progress import progress
from glmcore.recipe import Recipe
from glmcore.rl.curriculum.config import DifficultyConfig
from glmcore.rl.curriculum.difficulty import PassRecord, next_chunk
from glmcore.rl.pool import Pool, read_probe, training_pool
from glmcore.rl.result_file import ResultFile
from glmcore.rl.seeds import seed_of
from glmcore.rl.stage import load_policy, new_worker
from glmcore.rundir import RunDirectory, open_run

RewardsOf = Callable[[Sequence[Problem], Sequence[int]], Sequence[float]]
"""Rewards of one attempt at each task, the i-th drawn with the i-th seed; equal neighbours share their prompt."""


def run(recipe: Recipe) -> dict[str, int]:
    """Probe the pool of `recipe` with the newest weights of its run; goes on where an earlier call stopped.

    Writes `probe.jsonl` into the run directory, from which the curriculum begins. Gives the number of tasks of each
    difficulty.

    Raises:
        RunError: The training stages are not finished, the run directory is in use, or `probe.jsonl` belongs to
            other settings or weights.
    """
    with open_run(recipe) as directory:
        return probe(directory)


def probe(run: RunDirectory[Recipe]) -> dict[str, int]:
    """The offline pass of an open run; see `run`."""
    config = run.recipe.rl
    difficulty = DifficultyConfig() if config.curriculum is None else config.curriculum.difficulty
    model, progress = load_policy(run)
    with new_worker(run, model) as worker:
        worker.temperature = config.temperature if config.probe.temperature is None else config.probe.temperature
        pool = training_pool(run.recipe)
        asked = {
            "stage": progress.stage_index,
            "step": progress.step,
            "temperature": worker.temperature,
            "max_response_tokens": config.max_response_tokens,
            "few_attempts": difficulty.few_attempts,
            "many_attempts": difficulty.many_attempts,
            "half_life": difficulty.half_life,
            "seed": config.probe.seed,
        }
        file = ResultFile(run.probe, asked)

        def rewards_of(problems: Sequence[Problem], seeds: Sequence[int]) -> list[float]:
            return [rollout.reward for rollout in worker.roll_out(problems, seeds)]

        try:
            probe_tasks(pool, difficulty, rewards_of, file, seed=config.probe.seed, batch=worker.max_sequences)
        finally:
            file.close()
    return dict(Counter(record.difficulty(difficulty) for record in read_probe(run.probe).values()))


class Results(Protocol):
    """Where decided tasks go: `ResultFile`."""

    done: set[str]
    """Ids of decided tasks."""

    def add(self, id_: str, **values: Any) -> None:
        """Record a decided task."""
        ...


def probe_tasks(
    pool: Pool, config: DifficultyConfig, rewards_of: RewardsOf, results: Results, *, seed: int, batch: int
) -> int:
    """Attempt every task of `pool` that `results` lacks until its class is decided; gives the number of attempts.

    The attempts of a task depend on `seed`, its id and their number, not on what else is in the batch. A batch takes
    the tasks that are furthest first, so that few are open at a time.

    Args:
        pool: Tasks.
        config: What decides a class.
        rewards_of: Makes attempts.
        results: What is decided, and receives what is.
        seed: Of the attempts.
        batch: Most attempts at a time.
    """
    waiting = [task for task in reversed(pool.tasks) if task.id not in results.done]
    opened: list[_Open] = []
    total = 0
    with progress("probe", total=len(pool.tasks), unit="tasks") as bar:
        bar.skip(len(pool.tasks) - len(waiting))
        while waiting or opened:
            shares = _shares(opened, waiting, config, batch)
            problems = [one.task for one, count in shares for _ in range(count)]
            seeds = [
                attempt_seed(seed, one.task.id, one.record.attempts + i) for one, count in shares for i in range(count)
            ]
            rewards = iter(rewards_of(problems, seeds))
            total += len(problems)
            for one, count in shares:
                one.record.add([next(rewards) for _ in range(count)], config.half_life)
                more = next_chunk(one.record, config)
                one.left = min(one.left - count, more) or more
                if not more:
                    results.add(
                        one.task.id,
                        difficulty=one.record.difficulty(config),
                        verified=one.task.id not in pool.unverified,
                        record=one.record.to_dict(),
                    )
            still_open = [one for one in opened if one.left]
            bar.advance(len(opened) - len(still_open))
            opened = still_open
    return total


@dataclass
class _Open:
    """A task that is not decided."""

    task: Problem
    record: PassRecord
    left: int
    """Attempts left of its chunk."""


def _shares(
    opened: list[_Open], waiting: list[Problem], config: DifficultyConfig, batch: int
) -> list[tuple[_Open, int]]:
    """How many attempts of which tasks make up the next batch; opens tasks while there is room."""
    shares: list[tuple[_Open, int]] = []
    place, room = 0, batch
    while room and (place < len(opened) or waiting):
        if place == len(opened):
            record = PassRecord()
            opened.append(_Open(waiting.pop(), record, next_chunk(record, config)))
        count = min(opened[place].left, room)
        shares.append((opened[place], count))
        room -= count
        place += 1
    return shares


def attempt_seed(seed: int, task_id: str, attempt: int) -> int:
    """Seed of one attempt at one task, whatever else is attempted beside it."""
    return seed_of(seed, int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:8], "little"), attempt)
