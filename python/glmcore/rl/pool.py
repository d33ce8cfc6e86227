"""The tasks of a run: what is trained on, and what never is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from glmcore.data.reasoning import Problem
from glmcore.envs.registry import list_tasks
from glmcore.errors import RunError
from glmcore.recipe import Recipe
from glmcore.rl.curriculum.difficulty import PassRecord
from glmcore.rl.curriculum.source import CurriculumSource
from glmcore.rl.result_file import read_results
from glmcore.rl.tasks import FixedOrder, TaskSource


@dataclass(frozen=True)
class Pool:
    """A fixed set of training tasks."""

    tasks: list[Problem]
    """With distinct ids and questions."""
    unverified: frozenset[str] = frozenset()
    """Ids of those whose reference answers nobody has verified."""


def training_pool(recipe: Recipe) -> Pool:
    """The tasks that a recipe trains on; without `rl.pool` those of all steps.

    Raises:
        DataError: A family of tasks is unknown.
    """
    config = recipe.rl
    if config.pool is None:
        return Pool(list({task.question: task for task in _tasks_of_all_steps(recipe)}.values()))
    found = list_tasks(config.environment, config.tasks, "train", config.pool.num_tasks, config.pool.seed)
    tasks = list({task.question: task for task in found}.values())
    if not config.pool.wrong_answer_share:
        return Pool(tasks)
    return _with_wrong_answers(tasks, config.pool.wrong_answer_share, config.pool.seed)


def task_source(recipe: Recipe, probe: Path) -> TaskSource:
    """The source that a recipe asks for.

    Args:
        recipe: Pool and curriculum.
        probe: Result of the run's own offline pass, if it was made.

    Raises:
        ConfigError: The curriculum has nothing to begin with.
        RunError: The result of the offline pass is missing or damaged.
    """
    config = recipe.rl
    if config.pool is None:
        return FixedOrder(_tasks_of_all_steps(recipe))
    pool = training_pool(recipe)
    if config.curriculum is None:
        return FixedOrder(pool.tasks)
    records: dict[str, PassRecord] = {}
    if config.curriculum.probe is not None:
        probe = Path(config.curriculum.probe)
        if not probe.exists():
            raise RunError(f"rl.curriculum.probe: there is no {probe}: make it with `glmcore rl probe`")
    if probe.exists():
        records = read_probe(probe)
    return CurriculumSource(
        pool.tasks, config.curriculum, records=records, unverified=pool.unverified, seed=recipe.run.seed
    )


def read_probe(file: Path) -> dict[str, PassRecord]:
    """Attempts of each task that an offline pass has decided, by task id.

    Raises:
        RunError: The file is damaged.
    """
    return {line["id"]: PassRecord(**line["record"]) for line in read_results(file)}


def check_apart(training: Sequence[Problem], held_out: Sequence[Problem], name: str) -> None:
    """Make sure that no held-out task is trained on.

    Raises:
        RunError: One is, by its id or by its question.
    """
    ids = {task.id for task in training}
    questions = {task.question for task in training}
    for task in held_out:
        if task.id in ids or task.question in questions:
            raise RunError(f"suite {name!r}: held-out task {task.id} is trained on: {task.question!r}")


def _tasks_of_all_steps(recipe: Recipe) -> list[Problem]:
    config = recipe.rl
    count = config.max_steps * config.groups_per_step
    return list_tasks(config.environment, config.tasks, "train", count, recipe.run.seed + 1)


def _with_wrong_answers(tasks: Sequence[Problem], share: float, seed: int) -> Pool:
    """Give a share of the tasks the answer of another one, where that one is not right by accident."""
    random = np.random.default_rng((seed, len(tasks)))
    chosen = random.permutation(len(tasks))[: round(share * len(tasks))]
    changed = list(tasks)
    unverified: set[str] = set()
    for place in chosen:
        others = [
            task.answer for task in tasks if task.answer != tasks[place].answer and task.task == tasks[place].task
        ]
        if others:
            answer = others[int(random.integers(len(others)))]
            changed[place] = replace(tasks[place], answer=answer, entry=tasks[place].entry | {"answer": answer})
            unverified.add(tasks[place].id)
    return Pool(changed, frozenset(unverified))
