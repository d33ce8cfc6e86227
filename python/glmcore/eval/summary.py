"""The figures of an evaluation, for people and for programs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glmcore.eval.records import Record
from glmcore.eval.statistics import estimate
from glmcore.rl.evaluate import RewardEstimate, pass_at_powers


@dataclass(frozen=True)
class Row:
    """A category of a suite, a suite, or all."""

    suite: str
    category: str
    num_problems: int
    num_samples: int
    """Answers to each problem."""
    avg: RewardEstimate
    """avg@k: mean score, problems being the units of the interval."""
    pass_at: dict[int, RewardEstimate]
    """pass@k for k = 1, 2, 4, ... and the number of samples: unbiased for each problem, then their mean."""
    num_tokens: float
    """Mean tokens of an answer."""
    truncated: float
    """Share of answers that were cut off."""
    unread: float
    """Share of answers in which nothing was found to be judged."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **{name: value for name, value in vars(self).items() if name not in ("avg", "pass_at")},
            "avg": self.avg.to_dict(),
            "pass_at": {str(k): value.to_dict() for k, value in self.pass_at.items()},
        }


def summarize(records: Sequence[Record]) -> list[Row]:
    """Rows of every category, every suite of several categories, and, of several suites, all together."""
    by_suite: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        by_suite[record.suite][record.category].append(record)
    rows: list[Row] = []
    for suite, by_category in sorted(by_suite.items()):
        for category, found in sorted(by_category.items()):
            rows.append(_row(suite, category, found))
        if len(by_category) > 1:
            rows.append(_row(suite, "all", [record for found in by_category.values() for record in found]))
    if len(by_suite) > 1:
        rows.append(_row("all", "all", records))
    return rows


def scores_by_problem(records: Sequence[Record]) -> dict[str, list[float]]:
    """Scores of every problem, samples in order."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for record in records:
        found[record.problem][record.sample] = record.score
    return {problem: [scores[sample] for sample in sorted(scores)] for problem, scores in found.items()}


def _row(suite: str, category: str, records: Sequence[Record]) -> Row:
    scores = np.array(list(scores_by_problem(records).values()), np.float64)
    samples = scores.shape[1]
    passes = (scores == 1).sum(1)
    return Row(
        suite=suite,
        category=category,
        num_problems=len(scores),
        num_samples=samples,
        avg=estimate(scores),
        pass_at={k: estimate(np.array(each)[:, None]) for k, each in pass_at_powers(passes.tolist(), samples).items()},
        num_tokens=float(np.mean([record.num_tokens for record in records])),
        truncated=float(np.mean([record.finish_reason == "length" for record in records])),
        unread=float(np.mean([record.extracted is None for record in records])),
    )


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    samples = rows[0].num_samples
    ks = [k for k in rows[0].pass_at if k > 1]
    head = ["suite", "category", "problems", f"avg@{samples} (95% interval)", *(f"pass@{k}" for k in ks)]
    head += ["tokens", "cut off", "no answer found"]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for row in rows:
        avg = f"{100 * row.avg.mean:.1f} ({100 * row.avg.low:.1f} to {100 * row.avg.high:.1f})"
        passed = [f"{100 * row.pass_at[k].mean:.1f}" for k in ks]
        shares = [f"{row.num_tokens:,.0f}", f"{100 * row.truncated:.1f}%", f"{100 * row.unread:.1f}%"]
        lines.append([_cell(row.suite), _cell(row.category), f"{row.num_problems:,}", avg, *passed, *shares])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
