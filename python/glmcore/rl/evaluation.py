"""Evaluation while training goes on: suites of held-out tasks, several answers to each."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glmcore.chat import parse_reply
from glmcore.durable import write_file
from glmcore.envs.registry import list_tasks
from glmcore.errors import RunError
from glmcore.progress import say
from glmcore.recipe import Recipe
from glmcore.rl.curriculum.course import StepSettings
from glmcore.rl.curriculum.difficulty import PASS_REWARD
from glmcore.rl.evaluate import RewardEstimate, evaluate, pass_at_powers
from glmcore.rl.evaluation_config import SuiteConfig
from glmcore.rl.pool import check_apart, distinct, training_pool, what_is_asked
from glmcore.rl.rollout import Rollout, RolloutWorker


@dataclass(frozen=True)
class SuiteResult:
    """What a policy does on a suite."""

    suite: str
    step: int
    """Finished steps of RL."""
    num_samples: int
    """Answers to each task."""
    avg: RewardEstimate
    """avg@k: mean reward over tasks of the mean over a task's answers; tasks are the units of the interval."""
    pass_at: dict[int, RewardEstimate]
    """pass@k of k = 1, 2, 4, ... and the number of samples: unbiased for each task, then the mean over tasks."""
    length_mean: float
    """Tokens of an answer."""
    truncated: float
    """Share of answers that were cut off."""
    short: float
    """Share of answers that are short templates; see `is_short_template`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "pass_at": {str(k): asdict(value) for k, value in self.pass_at.items()}}

    @classmethod
    def from_dict(cls, line: dict[str, Any]) -> "SuiteResult":
        """The result that `to_dict` has written."""
        pass_at = {int(k): RewardEstimate(**value) for k, value in line["pass_at"].items()}
        return cls(**{**line, "avg": RewardEstimate(**line["avg"]), "pass_at": pass_at})


def summarize_answers(
    name: str, step: int, rewards: np.ndarray, lengths: np.ndarray, truncated: np.ndarray, short: np.ndarray
) -> SuiteResult:
    """The result of a suite from its answers.

    Args:
        name: Of the suite.
        step: Finished steps of RL.
        rewards: In [0, 1], float [tasks, samples].
        lengths: Tokens, int [tasks, samples].
        truncated: Whether each was cut off, bool [tasks, samples].
        short: Whether each is a short template, bool [tasks, samples].
    """
    samples = rewards.shape[1]
    passes = (rewards >= PASS_REWARD).sum(1)
    pass_at = {k: RewardEstimate.from_rewards(each) for k, each in pass_at_powers(passes.tolist(), samples).items()}
    return SuiteResult(
        name,
        step,
        samples,
        RewardEstimate.from_rewards(rewards.mean(1).tolist()),
        pass_at,
        float(lengths.mean()),
        float(truncated.mean()),
        float(short.mean()),
    )


def is_short_template(rollout: Rollout, short_tokens: int) -> bool:
    """Whether an answer has the form of one and next to nothing in it, be it right or wrong.

    It ended by itself, its thinking is closed, something is said after it, and all of it, tags and end included, is
    at most `short_tokens` tokens. So neither counts what was cut off nor what is only broken.
    """
    if rollout.failed is not None or rollout.ending.finish_reason != "stop" or len(rollout.sampled_ids) > short_tokens:
        return False
    message = parse_reply(rollout.reply)
    return message.finished_thinking and bool(message.content.strip())


class Evaluator:
    """Runs the suites of a recipe when they are due, each moment once over the life of the run.

    Args:
        recipe: With `rl.evaluation`; without it nothing is ever due.
        file: Results, one JSON object a line; what is there is not measured again.
        worker: Answers, with the weights that its engine holds.

    Raises:
        RunError: A held-out task is trained on.
    """

    def __init__(self, recipe: Recipe, file: Path, worker: RolloutWorker) -> None:
        self.recipe = recipe
        self.config = recipe.rl.evaluation
        self.file = file
        self.worker = worker
        self.seed = recipe.run.seed
        self._tasks: dict[str, list[Any]] = {}
        if self.config is not None:
            training = training_pool(recipe).tasks
            for suite in self.config.suites:
                self._tasks[suite.name] = suite_tasks(recipe, suite, seed=self.seed)
                check_apart(training, self._tasks[suite.name], suite.name)

    def is_due(self, step: int) -> bool:
        """Whether it is time to measure what `step` finished steps have led to."""
        config = self.config
        return config is not None and (step % config.every_steps == 0 or step == self.recipe.rl.max_steps)

    def run_if_due(self, step: int, settings: StepSettings) -> list[SuiteResult]:
        """Measure what `step` finished steps have led to, if it is time and not done yet.

        Args:
            step: Finished steps; the engine holds the weights after them.
            settings: Of training at the moment.
        """
        if self.config is None or not self.is_due(step):
            return []
        known = read_evaluations(self.file)
        done = {result.suite for result in known if result.step == step}
        found = [self._measure(suite, step, settings) for suite in self.config.suites if suite.name not in done]
        if found:
            lines = [json.dumps(result.to_dict()) for result in [*known, *found]]
            write_file(self.file, "".join(f"{line}\n" for line in lines))
        return found

    @cached_property
    def _validation(self) -> list[Any]:
        """Held-out tasks that a temperature is chosen on, none of them in a suite."""
        config = self.recipe.rl.dynamic_temperature
        assert config is not None, "only a dynamic temperature is chosen"
        suites = [task for tasks in self._tasks.values() for task in tasks]
        suite = SuiteConfig(name="temperature", tasks=self.recipe.rl.tasks, num_tasks=config.num_tasks + len(suites))
        kept = suite_tasks(self.recipe, suite, seed=self.seed + 1, apart_from=suites)[: config.num_tasks]
        if not kept:
            raise RunError(f"no held-out task of {self.recipe.rl.tasks} is left to choose the temperature on")
        return kept

    def held_out_reward(self, temperature: float, max_response_tokens: int) -> float:
        """Mean reward of the engine's weights on held-out tasks, with the same random numbers at every call."""
        self.worker.temperature, self.worker.max_tokens = temperature, max_response_tokens
        estimate, _ = evaluate(self.worker, self._validation, self.seed, f"try temperature {temperature:g}")
        return estimate.mean

    def _measure(self, suite: SuiteConfig, step: int, settings: StepSettings) -> SuiteResult:
        tasks = self._tasks[suite.name]
        self.worker.temperature = settings.temperature if suite.temperature is None else suite.temperature
        self.worker.max_tokens = suite.max_response_tokens or settings.max_response_tokens
        repeated = [task for task in tasks for _ in range(suite.num_samples)]
        _, rollouts = evaluate(self.worker, repeated, self.seed, f"evaluate {suite.name} after step {step}")
        result = _summarize(suite, step, rollouts)
        say(f"{suite.name} after step {step}: avg@{suite.num_samples} {result.avg}")
        return result


def suite_tasks(recipe: Recipe, suite: SuiteConfig, seed: int, apart_from: Sequence[Any] = ()) -> list[Any]:
    """The distinct held-out tasks of a suite in the recipe's environment, without those of others."""
    found = list_tasks(recipe.rl.environment, suite.tasks, "held_out", suite.num_tasks, seed)
    others = {what_is_asked(task) for task in apart_from}
    return distinct(task for task in found if what_is_asked(task) not in others)


def read_evaluations(file: Path) -> list[SuiteResult]:
    """All results of a run, in the order they were made; none if there is no file."""
    if not file.exists():
        return []
    return [SuiteResult.from_dict(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def _summarize(suite: SuiteConfig, step: int, rollouts: Sequence[Rollout]) -> SuiteResult:
    shape = (-1, suite.num_samples)
    return summarize_answers(
        suite.name,
        step,
        np.array([rollout.reward for rollout in rollouts]).reshape(shape),
        np.array([len(rollout.sampled_ids) for rollout in rollouts]).reshape(shape),
        np.array([rollout.ending.finish_reason == "length" for rollout in rollouts]).reshape(shape),
        np.array([is_short_template(rollout, suite.short_tokens) for rollout in rollouts]).reshape(shape),
    )
