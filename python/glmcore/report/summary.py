"""Figures of a run."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from glmcore.errors import RunError
from glmcore.metrics import read_metrics

EDGE_STEPS = 5
"""`loss_first` and `loss_last` are means over so many steps at each end of a stage."""


def summarize(run_dir: str | Path) -> dict[str, Any]:
    """Figures of a run, finished or not.

    Returns:
        `name`, `stages` (each with name, steps, seconds, tokens, tokens_per_s, loss_first, loss_last: mean
        cross-entropy in nats over the first and last 5 steps; validation_loss: the last on held-out documents of each
        source; mfu: mean share of the measured peak, None if not measured; skipped: steps), `stations` (each with
        name, seconds, tokens, tokens_per_s, note), `rl` (before and after, each with mean, low, high, n; seconds; None
        before the first evaluation) and `machine`.

    Raises:
        RunError: `run_dir` is no run.
    """
    path = Path(run_dir)
    if not (path / "recipe.toml").is_file():
        raise RunError(f"{path} is not a run directory: it has no recipe.toml")
    records = read_metrics(path / "metrics.jsonl")
    file = path / "stations.json"
    stations: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    names = dict.fromkeys(record["stage"] for record in records if record["stage"] != "rl")
    return {
        "name": path.absolute().name,
        "stages": [_stage(name, [r for r in records if r["stage"] == name]) for name in names],
        "stations": stations.get("stations", []),
        "rl": stations.get("rl"),
        "machine": stations.get("machine", {}),
    }


def _stage(name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = sum(record["seconds"] for record in records)
    tokens = sum(record["tokens"] for record in records)
    losses = [record["loss"] for record in records if record["loss"] is not None]
    shares = [record["mfu"] for record in records if record.get("mfu") is not None]
    return {
        "name": name,
        "steps": len(records),
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds if seconds else None,
        "loss_first": fmean(losses[:EDGE_STEPS]) if losses else None,
        "loss_last": fmean(losses[-EDGE_STEPS:]) if losses else None,
        "validation_loss": next((r["validation_loss"] for r in reversed(records) if "validation_loss" in r), {}),
        "mfu": fmean(shares) if shares else None,
        "skipped": sum(1 for record in records if record.get("skipped")),
    }


def format_losses(losses: dict[str, float | None]) -> str:
    """Losses of sources in a line."""
    return ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items() if loss is not None)


def format_table(summary: dict[str, Any], *, markdown: bool = False) -> str:
    """What every station took, as aligned text or Markdown."""
    losses = {stage["name"]: stage for stage in summary["stages"]}
    rows = [["station", "seconds", "tokens", "tokens/s", "loss", "held-out loss", "note"]]
    for station in summary["stations"]:
        stage = losses.get(station["name"])
        loss = f"{stage['loss_first']:.2f} to {stage['loss_last']:.2f}" if stage and stage["loss_last"] else ""
        rows.append(
            [
                station["name"],
                f"{station['seconds']:.1f}",
                _count(station["tokens"]),
                _count(station["tokens_per_s"]),
                loss,
                format_losses(stage["validation_loss"]) if stage else "",
                station["note"],
            ]
        )
    total = sum(station["seconds"] for station in summary["stations"])
    rows.append(["all", f"{total:.1f}", "", "", "", "", ""])
    return _markdown(rows) if markdown else _aligned(rows)


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: list[str], widths: list[int]) -> str:
    cells = [
        cell.rjust(width) if 1 <= index <= 3 else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _markdown(rows: list[list[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    rule = ["---", "---:", "---:", "---:", "---", "---", "---"]
    return "\n".join([line(rows[0]), line(rule), *(line(row) for row in rows[1:])])
