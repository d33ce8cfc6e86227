"""The curriculum: tasks of the stage's difficulty, judged by how the policy does on them now."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glmcore.data.reasoning import Problem
from glmcore.errors import ConfigError
from glmcore.progress import say
from glmcore.rl.curriculum.config import CurriculumConfig
from glmcore.rl.curriculum.difficulty import Difficulty, PassRecord
from glmcore.rl.curriculum.plateau import Plateau

NO_ATTEMPTS = PassRecord()
TIERS: tuple[Difficulty, ...] = ("unknown", "easy", "moderate", "hard", "unsolved")


class CurriculumSource:
    """Gives out the tasks of one difficulty after the other; a `TaskSource`.

    A stage goes through its tasks in rounds, each in a new random order, and leaves out those that are easy by now.
    Which tasks belong to a round is decided when it begins, from all attempts so far. A stage in which every task has
    become easy gives way to the next; the last one then goes on with all of its tasks.

    Args:
        tasks: The pool; ids are distinct.
        config: Stages and what difficulty means.
        records: Attempts of an offline pass, by task id.
        unverified: Ids of tasks whose reference answers nobody has verified.
        seed: Of the random orders.

    Raises:
        ConfigError: The first stage has no tasks.
    """

    def __init__(
        self,
        tasks: Sequence[Problem],
        config: CurriculumConfig,
        *,
        records: Mapping[str, PassRecord],
        unverified: frozenset[str] = frozenset(),
        seed: int,
    ) -> None:
        self.config = config
        self.seed = seed
        self.stage = 0
        self._tasks = list(tasks)
        self._place = {task.id: place for place, task in enumerate(self._tasks)}
        self._records = {id_: PassRecord(**record.to_dict()) for id_, record in records.items() if id_ in self._place}
        self._unverified = unverified
        self._plateau = Plateau(config.plateau)
        self._counts = self._count()
        self._round = 0
        self._order: list[int] = []
        """Places in the pool that this round has still to give out, last first."""
        self._skips_easy = True
        if not self._members():
            raise ConfigError(
                f"no task of difficulty {config.stages[0].difficulty!r} for the first stage of the curriculum: find "
                "them with `glmcore rl probe`, or enlarge rl.pool.num_tasks"
            )

    def next(self, count: int) -> list[Problem]:
        """See `TaskSource.next`."""
        return [self._tasks[self._draw()] for _ in range(count)]

    def task(self, task_id: str) -> Problem:
        """See `TaskSource.task`."""
        return self._tasks[self._place[task_id]]

    def observe(self, task_id: str, rewards: Sequence[float]) -> None:
        """See `TaskSource.observe`."""
        record = self._records.setdefault(task_id, PassRecord())
        self._counts[record.difficulty(self.config.difficulty)] -= 1
        record.add(rewards, self.config.difficulty.half_life)
        self._counts[record.difficulty(self.config.difficulty)] += 1

    def finish_step(self, step: int, reward: float) -> None:
        """Go on to the next stage if this one is over.

        Args:
            step: The step that is done.
            reward: Mean reward of all that was sampled for it.
        """
        stage = self.config.stages[self.stage]
        stable = self._plateau.add(reward)
        if stage.until == "end":
            return
        due = stage.last_step is not None and step >= stage.last_step
        if due or (stage.until == "plateau" and stable):
            self._enter_next(f"step {step} is done" if due else "the reward is stable")

    def figures(self) -> dict[str, float]:
        """The stage, and how many tasks of the pool are of each difficulty now."""
        return {"curriculum_stage": float(self.stage)} | {f"tasks_{tier}": float(n) for tier, n in self._counts.items()}

    def state_dict(self) -> dict[str, Any]:
        """Stage, round, what is left of it, and all attempts."""
        return {
            "stage": self.stage,
            "round": self._round,
            "order": list(self._order),
            "skips_easy": self._skips_easy,
            "rewards": list(self._plateau.rewards),
            "records": {id_: record.to_dict() for id_, record in self._records.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `TaskSource.load_state_dict`."""
        self.stage, self._round = int(state["stage"]), int(state["round"])
        self._order, self._skips_easy = list(state["order"]), bool(state["skips_easy"])
        self._plateau.rewards = list(state["rewards"])
        self._records = {id_: PassRecord(**record) for id_, record in state["records"].items()}
        self._counts = self._count()

    def _draw(self) -> int:
        while True:
            while self._order:
                place = self._order.pop()
                if not (self._skips_easy and self._is_easy(place)):
                    return place
            self._begin_round()

    def _begin_round(self) -> None:
        last = len(self.config.stages) - 1
        members = self._members()
        while not (wanted := [place for place in members if not self._is_easy(place)]) and self.stage < last:
            self._enter_next("all its tasks are easy" if members else "it has no tasks")
            members = self._members()
        self._skips_easy = bool(wanted)
        places = wanted or members or list(range(len(self._tasks)))  # rather these than none
        self._round += 1
        random = np.random.default_rng((self.seed, self.stage, self._round))
        self._order = [places[i] for i in random.permutation(len(places))]

    def _enter_next(self, reason: str) -> None:
        self.stage += 1
        self._order = []
        self._plateau.reset()
        stage, found = self.config.stages[self.stage], len(self._members())
        say(
            f"curriculum: stage {self.stage + 1} of {len(self.config.stages)}, {found} {stage.difficulty} tasks; "
            f"the one before ended: {reason}"
        )

    def _members(self) -> list[int]:
        """Places of the tasks that the stage is about, easy ones among them."""
        stage = self.config.stages[self.stage]
        return [
            place
            for place, task in enumerate(self._tasks)
            if not (stage.verified_only and task.id in self._unverified)
            and (stage.difficulty == "any" or self._belongs(task.id, stage.difficulty))
        ]

    def _belongs(self, task_id: str, difficulty: Difficulty) -> bool:
        record = self._records.get(task_id, NO_ATTEMPTS)
        config = self.config.difficulty
        untried = record.attempts < config.few_attempts and difficulty == "moderate"
        return untried or record.kind(config) == difficulty

    def _is_easy(self, place: int) -> bool:
        record = self._records.get(self._tasks[place].id, NO_ATTEMPTS)
        return record.difficulty(self.config.difficulty) == "easy"

    def _count(self) -> dict[Difficulty, int]:
        counts = dict.fromkeys(TIERS, 0)
        for task in self._tasks:
            counts[self._records.get(task.id, NO_ATTEMPTS).difficulty(self.config.difficulty)] += 1
        return counts
