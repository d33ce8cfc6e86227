"""The page of an ablation: its table, and curves with the range over seeds."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from glmcore.ablation.config import AblationConfig
from glmcore.ablation.runs import Ablation
from glmcore.ablation.table import Estimate, RunFigures, Table
from glmcore.durable import write_file
from glmcore.errors import RunError
from glmcore.report.charts import NUM_COLOURS, Series, line_chart
from glmcore.report.page import PAGE
from glmcore.report.picture import svg_picture

SMOOTHED = 5
"""Steps over which curves of training are averaged."""


def write_ablation(ablation: Ablation) -> tuple[Path, str]:
    """Write `ablation.html`, `held_out.svg` and `table.md` of the runs that are there.

    Gives the page's path and the table.

    Raises:
        RunError: No run has results yet.
    """
    config = ablation.config
    runs = [RunFigures.read(arm, seed, path, config.suite) for arm, seed, path in ablation.finished()]
    if not any(run.curve for run in runs):
        raise RunError(f"no run of {ablation.directory} has been evaluated yet")
    table = Table.of(config, runs)
    held_out = _held_out(config, runs, "avg")
    body = [
        f"<h1>{escape(config.title)}</h1>",
        f'<p class="muted">Published: {escape(config.published)}</p>',
        f"<p>{len(config.seeds)} seeds; intervals are 95% intervals of the mean over seeds.</p>",
        table.html(),
        "<h2>Held-out reward</h2>",
        line_chart("Held-out reward", held_out, "step", "avg@k"),
        "<h2>Held-out pass@k</h2>",
        line_chart("Held-out pass@k", _held_out(config, runs, "pass"), "step", "pass@k"),
        "<h2>Training</h2>",
        line_chart("Reward of what was sampled", _training(config, runs, "reward_mean"), "step", "mean reward"),
        line_chart("Length of answers", _training(config, runs, "response_length_mean"), "step", "tokens"),
        line_chart("Entropy", _training(config, runs, "entropy"), "step", "nats"),
    ]
    page = ablation.directory / "ablation.html"
    template = Template(PAGE.read_text(encoding="utf-8"))
    write_file(page, template.substitute(name=escape(config.title), body="\n".join(body)))
    write_file(ablation.directory / "held_out.svg", svg_picture(config.title, held_out, "step", "held-out reward"))
    write_file(ablation.directory / "table.md", table.markdown() + "\n")
    return page, table.markdown()


def _held_out(config: AblationConfig, runs: Sequence[RunFigures], column: str) -> list[Series]:
    lines: list[Series] = []
    for place, arm in enumerate(config.arms):
        values: dict[int, list[float]] = {}
        for run in runs:
            for result in run.curve if run.arm == arm.name else ():
                found = result.avg if column == "avg" else result.pass_at[max(result.pass_at)]
                values.setdefault(result.step, []).append(found.mean)
        lines.append(_line(arm.name, place, values))
    return lines


def _training(config: AblationConfig, runs: Sequence[RunFigures], column: str) -> list[Series]:
    lines: list[Series] = []
    for place, arm in enumerate(config.arms):
        values: dict[int, list[float]] = {}
        for run in runs:
            if run.arm != arm.name:
                continue
            found = [record.get(column) for record in run.steps]
            for end in range(SMOOTHED, len(found) + 1, SMOOTHED):
                part = [value for value in found[end - SMOOTHED : end] if value is not None]
                if part:
                    values.setdefault(end, []).append(float(np.mean(part)))
        lines.append(_line(arm.name, place, values))
    return lines


def _line(name: str, place: int, values: dict[int, list[float]]) -> Series:
    """The mean over seeds at each step, with its interval as far as it lies among the seeds' own values."""
    steps = sorted(values)
    estimates = [Estimate.of(values[step]) for step in steps]
    return Series(
        name,
        [float(step) for step in steps],
        [estimate.mean for estimate in estimates],
        place % NUM_COLOURS,
        low=[max(e.mean - e.half, min(values[s])) for e, s in zip(estimates, steps, strict=True)],
        high=[min(e.mean + e.half, max(values[s])) for e, s in zip(estimates, steps, strict=True)],
    )
