"""What a task source learns from the groups of a batch."""

from collections.abc import Sequence

from glmcore.rl.tasks import TaskSource
from glmcore.trajectory import Sample


def task_rewards(samples: Sequence[Sample]) -> list[tuple[str, list[float]]]:
    """Task and rewards of each group, in the order of admission; failed rollouts have no reward."""
    groups: dict[int, tuple[str, list[float]]] = {}
    for sample in samples:
        rewards = groups.setdefault(sample.group_id, (sample.task, []))[1]
        if sample.failed is None:
            rewards.append(sample.reward)
    return [groups[group_id] for group_id in sorted(groups)]


def observe(tasks: TaskSource, samples: Sequence[Sample]) -> None:
    """Tell the source how its tasks were solved."""
    for task, rewards in task_rewards(samples):
        if rewards:
            tasks.observe(task, rewards)
