"""The figures of an ablation: means over seeds with 95% intervals, and differences between arms seed by seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from glmcore.ablation.config import AblationConfig
from glmcore.metrics import read_metrics
from glmcore.rl.evaluation import SuiteResult, read_evaluations

T95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95% quantiles of Student's t by degrees of freedom; from 10 on 2.228 is taken, on the safe side."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval, by Student's t; the interval of one seed is infinite."""

    mean: float
    half: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """The estimate from a value for each seed."""
        n = len(values)
        mean = math.fsum(values) / n
        if n == 1:
            return cls(mean, math.inf, 1)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
        quantile = T95[n - 1] if n - 1 < len(T95) else 2.228
        return cls(mean, quantile * deviation / math.sqrt(n), n)

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside of the interval."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        size = max(abs(self.mean), self.half if math.isfinite(self.half) else 0.0)
        digits = 1 if abs(self.mean) >= 10 else 3
        if 0 < size < 0.01:
            digits = 1 - math.floor(math.log10(size))  # two figures of the greater one
        half = "?" if math.isinf(self.half) else f"{self.half:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {half}"


@dataclass(frozen=True)
class RunFigures:
    """What one run has come to."""

    arm: str
    seed: int
    curve: list[SuiteResult]
    """The suite that counts, in the order of steps."""
    steps: list[dict[str, Any]]
    """Records of the steps."""

    @classmethod
    def read(cls, arm: str, seed: int, directory: Path, suite: str) -> "RunFigures":
        """From the directory of a run."""
        curve = [result for result in read_evaluations(directory / "evaluations.jsonl") if result.suite == suite]
        steps = [record for record in read_metrics(directory / "metrics.jsonl") if record["stage"] == "rl"]
        return cls(arm, seed, curve, steps)

    @property
    def seconds(self) -> float:
        """Wall time of all steps, without evaluations."""
        return math.fsum(record["seconds"] for record in self.steps)

    def value(self, column: str, last_steps: int) -> float:
        """A column of the table; see `COLUMNS`. NaN where the run has no such figure."""
        last = self.curve[-1]
        if column == "avg":
            return last.avg.mean
        if column == "pass":
            return last.pass_at[max(last.pass_at)].mean
        if column in ("short", "truncated"):
            return getattr(last, column)
        if column == "length":
            return last.length_mean
        found = [record[column] for record in self.steps[-last_steps:] if isinstance(record.get(column), int | float)]
        return float(np.mean(found)) if found else math.nan

    def reached(self, target: float, last_steps: int) -> tuple[int, float] | None:
        """Step, and seconds of training until then, at which the mean reward of `last_steps` steps reached `target`."""
        rewards = [record["reward_mean"] for record in self.steps]
        for end in range(last_steps, len(rewards) + 1):
            if np.mean(rewards[end - last_steps : end]) >= target:
                return end, float(sum(record["seconds"] for record in self.steps[:end]))
        return None


@dataclass(frozen=True)
class Table:
    """What an ablation has come to, as text."""

    head: list[str]
    rows: list[list[str]]
    """One for each arm."""
    differences: list[str]
    """Sentences, each about an arm and the first."""

    @classmethod
    def of(cls, config: AblationConfig, runs: Sequence[RunFigures]) -> "Table":
        """From the runs that have been evaluated."""
        by_arm = {arm.name: [run for run in runs if run.arm == arm.name and run.curve] for arm in config.arms}
        k = max((max(run.curve[-1].pass_at) for run in runs if run.curve), default=1)
        titles = {"avg": f"avg@{k}", "pass": f"pass@{k}", "short": "short answers", "length": "tokens of an answer"}
        head = ["arm", *(titles.get(column, column) for column in config.columns)]
        head += [f"steps to {config.target:g}", f"seconds to {config.target:g}", "seconds"]
        rows: list[list[str]] = []
        for name, group in by_arm.items():
            cells = [_cell(group, column, config.last_steps) for column in config.columns]
            rows.append([name, *cells, *_reached(group, config), _seconds(group)])
        return cls(head, rows, differences(config, by_arm))

    def markdown(self) -> str:
        """The table, and below it what of it can be told from chance."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *(f"- {d}" for d in self.differences)])

    def html(self) -> str:
        """The same for a page."""
        lines = [("th", self.head), *(("td", row) for row in self.rows)]
        rows = "".join(f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in line)}</tr>" for tag, line in lines)
        told = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.differences)
        return f'<div class="scroll"><table id="table">{rows}</table></div><ul id="differences">{told}</ul>'


def differences(config: AblationConfig, by_arm: dict[str, list[RunFigures]]) -> list[str]:
    """Sentences for each arm but the first: the difference of each column seed by seed, and whether it is one.

    Where seconds are compared, their ratio as well: the geometric mean over seeds, with the interval of its logarithm.
    """
    first, *others = config.arms
    sentences: list[str] = []
    for other in others:
        for column in config.columns:
            ours = {run.seed: run.value(column, config.last_steps) for run in by_arm[other.name]}
            theirs = {run.seed: run.value(column, config.last_steps) for run in by_arm[first.name]}
            both = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
            if not both or any(math.isnan(value) for value in both):
                continue
            estimate = Estimate.of(both)
            verdict = "a clear difference" if estimate.excludes_zero else "no clear difference"
            sentences.append(f"{other.name} minus {first.name}, {column}: {estimate} over {len(both)} seeds: {verdict}")
        if config.compare_seconds and (pairs := _paired_seconds(by_arm[other.name], by_arm[first.name])):
            sentences.append(f"{other.name} over {first.name}, seconds: {_ratio(pairs)} over {len(pairs)} seeds")
    return sentences


def _paired_seconds(ours: Sequence[RunFigures], theirs: Sequence[RunFigures]) -> list[tuple[float, float]]:
    by_seed = {run.seed: run.seconds for run in theirs}
    return [(run.seconds, by_seed[run.seed]) for run in ours if run.seed in by_seed]


def _ratio(pairs: Sequence[tuple[float, float]]) -> str:
    log = Estimate.of([math.log(ours / theirs) for ours, theirs in pairs])
    if math.isinf(log.half):
        return f"{math.exp(log.mean):.2f}"
    low, high = math.exp(log.mean - log.half), math.exp(log.mean + log.half)
    return f"{math.exp(log.mean):.2f} (95% interval {low:.2f} to {high:.2f})"


def _cell(group: Sequence[RunFigures], column: str, last_steps: int) -> str:
    values = [run.value(column, last_steps) for run in group]
    return str(Estimate.of(values)) if values and not any(map(math.isnan, values)) else "-"


def _reached(group: Sequence[RunFigures], config: AblationConfig) -> tuple[str, str]:
    """Steps and seconds until the target was reached, means of the runs that did; and how many did, if not all."""
    places = [run.reached(config.target, config.last_steps) for run in group]
    found = [place for place in places if place is not None]
    if not found:
        return "not reached", "-"
    share = "" if len(found) == len(places) else f" ({len(found)} of {len(places)} runs)"
    return f"{np.mean([step for step, _ in found]):.0f}{share}", f"{np.mean([time for _, time in found]):.0f}{share}"


def _seconds(group: Sequence[RunFigures]) -> str:
    return f"{np.mean([run.seconds for run in group]):.0f}" if group else "-"
