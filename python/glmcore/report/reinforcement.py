"""The part of the report about reinforcement learning."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from glmcore.report.charts import NUM_COLOURS, Series, interval_chart, line_chart

TIERS = ("easy", "moderate", "hard", "unsolved", "unknown")
Records = Sequence[dict[str, Any]]


def reinforcement(summary: dict[str, Any], records: Records, evaluations: Path) -> str:
    """Reward, suites, curriculum, and how sampling and training differ, as HTML.

    Args:
        summary: `glmcore.report.summarize` of the run.
        records: Metrics of the steps.
        evaluations: Results of the suites, if there are any.
    """
    rl = summary["rl"] or {}
    bars = [
        (f"{moment} RL (n = {rl[moment]['n']})", rl[moment]["mean"], rl[moment]["low"], rl[moment]["high"])
        for moment in ("before", "after")
        if moment in rl
    ]
    reward = [
        _series("mean reward", records, "reward_mean", 2),
        _series("of all that was sampled", records, "sampled_reward_mean", 0),
    ]
    length = [
        _series("response length", records, "response_length_mean", 0),
        _series("most tokens of an answer", records, "max_response_tokens", 3),
    ]
    return (
        "<h2>Reward</h2>"
        + interval_chart("Held-out reward before and after RL with 95% intervals", bars, "mean reward, held out")
        + "<p>Mean reward of the rollouts of each step:</p>"
        + line_chart("Reward of the rollouts by RL step", _present(reward), "RL step", "mean reward")
        + line_chart("Response length by RL step", _present(length), "RL step", "tokens")
        + _suites(evaluations)
        + _curriculum(records)
        + _distance(records)
    )


def _suites(file: Path) -> str:
    """avg@k and pass@k of every suite with their 95% intervals, and a table of the last results."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    if not lines:
        return ""
    results = [json.loads(line) for line in lines]
    names = list(dict.fromkeys(result["suite"] for result in results))
    average, passing, rows = list[Series](), list[Series](), list[str]()
    for place, name in enumerate(names):
        own = [result for result in results if result["suite"] == name]
        k = own[-1]["num_samples"]
        average.append(_curve(f"{name}, avg@{k}", own, [result["avg"] for result in own], place))
        passing.append(_curve(f"{name}, pass@{k}", own, [result["pass_at"][str(k)] for result in own], place))
        rows += [_row(name, result) for result in (own[0], own[-1])]
    head = "".join(f"<th>{name}</th>" for name in ("suite", "step", "avg@k", "pass@k", "tokens", "cut off", "short"))
    return (
        "<h2>Suites</h2>"
        + line_chart("Mean reward on held-out suites with 95% intervals", average, "RL step", "avg@k")
        + line_chart("Tasks solved in one of k answers with 95% intervals", passing, "RL step", "pass@k")
        + f'<div class="scroll"><table id="suites"><tr>{head}</tr>{"".join(rows)}</table></div>'
    )


def _curve(label: str, results: Records, estimates: Records, place: int) -> Series:
    return Series(
        label,
        [float(result["step"]) for result in results],
        [estimate["mean"] for estimate in estimates],
        place % NUM_COLOURS,
        low=[estimate["low"] for estimate in estimates],
        high=[estimate["high"] for estimate in estimates],
    )


def _row(name: str, result: dict[str, Any]) -> str:
    k = result["num_samples"]
    cells = [escape(name), f"{result['step']}", _interval(result["avg"], k), _interval(result["pass_at"][str(k)], k)]
    cells += [f"{result['length_mean']:.1f}", f"{result['truncated']:.3f}", f"{result['short']:.3f}"]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _interval(estimate: dict[str, Any], k: int) -> str:
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}], k = {k}"


def _curriculum(records: Records) -> str:
    """What was chosen, from what, and how."""
    groups = [
        _series("groups that teach", records, "teaching_groups", 2),
        _series("all right", records, "solved_groups", 0),
        _series("all wrong", records, "unsolved_groups", 1),
    ]
    tiers = [_series(tier, records, f"tasks_{tier}", place) for place, tier in enumerate(TIERS)]
    stage = [_series("stage of the curriculum", records, "curriculum_stage", 3)]
    temperature = [_series("temperature", records, "temperature", 4)]
    sampled = [_series("groups sampled for a step", records, "sampled_groups", 5)]
    charts = [
        ("Share of groups by RL step", groups, "share of groups"),
        ("Tasks of each difficulty by RL step", tiers, "tasks of the pool"),
        ("Stage of the curriculum by RL step", stage, "stage, from 0"),
        ("Groups sampled by RL step", sampled, "groups"),
        ("Sampling temperature by RL step", temperature, "temperature"),
    ]
    parts = [
        line_chart(title, present, "RL step", label, zero=True)
        for title, lines, label in charts
        if (present := _present(lines)) and _changes(present)
    ]
    return "<h2>Curriculum</h2>" + "".join(parts) if parts else ""


def _distance(records: Records) -> str:
    """How far apart the policies are that sample, are trained, and were trained."""
    charts = [
        ("Entropy by RL step", [_series("entropy", records, "entropy", 0)], "nats"),
        ("Rollouts and trainer apart by RL step", [_series("KL estimate", records, "kl_behaviour", 1)], "nats a token"),
        (
            "Tokens held back by RL step",
            [
                _series("clipped", records, "clip_fraction", 2),
                _series("importance weight bounded", records, "correction_fraction", 3),
            ],
            "share of tokens",
        ),
    ]
    parts = [line_chart(title, found, "RL step", label) for title, lines, label in charts if (found := _present(lines))]
    return "<h2>Policies</h2>" + "".join(parts) if parts else ""


def _series(label: str, records: Records, name: str, colour: int) -> Series:
    steps = [float(record["step"]) for record in records]
    return Series(label, steps, [record.get(name) for record in records], colour)


def _present(lines: Sequence[Series]) -> list[Series]:
    return [line for line in lines if any(value is not None for value in line.y)]


def _changes(lines: Sequence[Series]) -> bool:
    """Whether any line is more than one value all along."""
    return any(len({value for value in line.y if value is not None}) > 1 for line in lines)
