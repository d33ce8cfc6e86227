"""Two evaluations of the same problems, side by side."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glmcore.errors import DataError
from glmcore.eval.records import Record, Settings, read_records, read_settings
from glmcore.eval.statistics import Paired, compare_paired, mean_scores
from glmcore.eval.summary import scores_by_problem


@dataclass(frozen=True)
class ComparedRow:
    """A category of a suite, a suite, or all."""

    suite: str
    category: str
    paired: Paired

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"suite": self.suite, "category": self.category, **asdict(self.paired)}


def compare(a: Path, b: Path) -> list[ComparedRow]:
    """Compare evaluation B with evaluation A, by category, by suite and together.

    Raises:
        DataError: They are not of the same problems, one is not finished, or a file is missing or damaged.
    """
    settings = read_settings(a), read_settings(b)
    if settings[0].problems_digest != settings[1].problems_digest:
        raise DataError(f"{a} and {b} are not of the same problems: evaluate with the same suites, limit and seed")
    records = [_whole(directory, told) for directory, told in zip((a, b), settings, strict=True)]
    scores = [scores_by_problem(found) for found in records]
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in {record.problem: record for record in records[0]}.values():
        for place in ((record.suite, record.category), (record.suite, "all"), ("all", "all")):
            groups[place].append(record.problem)
    suites = {suite for suite, category in groups if category != "all"}
    rows: list[ComparedRow] = []
    for (suite, category), problems in groups.items():
        categories = sum(1 for other, name in groups if other == suite and name != "all")
        if category == "all" and (categories == 1 or (suite == "all" and len(suites) == 1)):
            continue  # the same as the one row that it sums up
        means = [mean_scores([found[problem] for problem in problems]) for found in scores]
        rows.append(ComparedRow(suite, category, compare_paired(*means)))
    return sorted(rows, key=lambda row: (row.suite == "all", row.suite, row.category == "all"))


def _whole(directory: Path, settings: Settings) -> list[Record]:
    records = read_records(directory)
    wanted = settings.num_problems * settings.num_samples
    if len(records) != wanted:
        raise DataError(f"{directory} has {len(records)} of {wanted} answers: finish that evaluation first")
    return records


def markdown(rows: Sequence[ComparedRow]) -> str:
    """A Markdown table; B against A."""
    head = (
        "| suite | category | problems | A | B | B - A (95% interval) | win | tie | loss | p (sign) | p (bootstrap) |"
    )
    lines = [head, "| --- | --- |" + " ---: |" * 9]
    for row in rows:
        told = row.paired
        difference = f"{100 * told.difference:+.1f} ({100 * told.low:+.1f} to {100 * told.high:+.1f})"
        counts = f"{told.wins} | {told.ties} | {told.losses}"
        means = f"{100 * told.mean_a:.1f} | {100 * told.mean_b:.1f}"
        lines.append(
            f"| {row.suite} | {row.category} | {told.num_problems} | {means} | {difference} | {counts} "
            f"| {told.p_sign:.3g} | {told.p_bootstrap:.3g} |"
        )
    return "\n".join(lines) + "\n"
