"""The report as one self-contained HTML page."""

import json
from html import escape
from itertools import accumulate
from pathlib import Path
from string import Template
from typing import Any

from glmcore.durable import write_file
from glmcore.metrics import read_metrics
from glmcore.report.charts import NUM_COLOURS, Band, Series, heat_map, line_chart
from glmcore.report.reinforcement import reinforcement
from glmcore.report.summary import format_losses, summarize

PAGE = Path(__file__).parent / "page.html"
MAX_SAMPLES = 60
MAX_SKIPPED = 20


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run directory; what is missing is said there. Gives the page's path.

    Raises:
        RunError: `run_dir` is no run.
    """
    path = Path(run_dir)
    summary = summarize(path)
    records = read_metrics(path / "metrics.jsonl")
    train = [record for record in records if record["stage"] != "rl"]
    rl = [record for record in records if record["stage"] == "rl"]
    body = [
        _header(summary),
        "<h2>Stations</h2>",
        _stations(summary),
        _training(train),
        _experts(train),
        reinforcement(summary, rl, path / "evaluations.jsonl"),
        _resources(train, rl),
        _samples(path / "samples.jsonl"),
        f"<h2>Recipe</h2><details><summary>recipe.toml, resolved</summary>"
        f'<pre id="recipe">{escape((path / "recipe.toml").read_text(encoding="utf-8"))}</pre></details>',
    ]
    page = path / "report.html"
    template = Template(PAGE.read_text(encoding="utf-8"))
    write_file(page, template.substitute(name=escape(summary["name"]), body="\n".join(body)))
    return page


def _header(summary: dict[str, Any]) -> str:
    machine = summary["machine"]
    rl = summary["rl"] or {}
    figures = [(f"{sum(s['seconds'] for s in summary['stations']):.0f} s", "all stations")]
    figures.append((f"{sum(stage['tokens'] for stage in summary['stages']):,}", "training tokens"))
    for moment in ("before", "after"):
        if moment in rl:
            figures.append((f"{rl[moment]['mean']:.3f}", f"held-out reward {moment} RL"))
    cards = "".join(f'<div class="figure"><b>{value}</b><span>{label}</span></div>' for value, label in figures)
    about = ", ".join(
        escape(str(part))
        for part in (
            machine.get("cpu"),
            f"{machine['cores']} cores" if "cores" in machine else None,
            f"torch {machine['torch']}" if "torch" in machine else None,
            machine.get("date"),
        )
        if part
    )
    return f'<h1>Run {escape(summary["name"])}</h1><p class="muted">{about}</p><div class="figures">{cards}</div>'


def _stations(summary: dict[str, Any]) -> str:
    if not summary["stations"]:
        return '<p class="missing">No station is finished yet.</p>'
    losses = {stage["name"]: stage for stage in summary["stages"]}
    rows: list[str] = []
    for station in summary["stations"]:
        stage = losses.get(station["name"])
        cells = [
            escape(station["name"]),
            f"{station['seconds']:.1f}",
            "" if station["tokens"] is None else f"{station['tokens']:,}",
            "" if station["tokens_per_s"] is None else f"{station['tokens_per_s']:,.0f}",
            f"{stage['loss_first']:.3f}" if stage and stage["loss_first"] is not None else "",
            f"{stage['loss_last']:.3f}" if stage and stage["loss_last"] is not None else "",
            escape(format_losses(stage["validation_loss"])) if stage else "",
            escape(station["note"]),
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(
        f"<th>{name}</th>"
        for name in ("station", "seconds", "tokens", "tokens/s", "first loss", "last loss", "held-out loss", "note")
    )
    return f'<div class="scroll"><table id="stations"><tr>{head}</tr>{"".join(rows)}</table></div>'


def _training(records: list[dict[str, Any]]) -> str:
    x, bands = _token_axis(records)
    loss = [
        Series("next token", x, [record["loss"] for record in records], 0),
        Series("token after the next (MTP)", x, [record.get("mtp_loss") for record in records], 1),
    ]
    rate = [Series("learning rate", x, [record["learning_rate"] for record in records], 2)]
    size = [Series("tokens of a step", x, [record["tokens"] for record in records], 0)]
    norm = [Series("gradient norm before clipping", x, [record["grad_norm"] for record in records], 1)]
    return (
        "<h2>Loss</h2>"
        + line_chart("Training loss by stage", loss, "training tokens", "cross-entropy, nats", bands)
        + _validation(records, x, bands)
        + "<h2>Learning rate and batch</h2>"
        + line_chart("Learning rate", rate, "training tokens", "learning rate", bands, zero=True)
        + line_chart("Batch size", size, "training tokens", "tokens of a step", bands, zero=True)
        + "<h2>Gradient</h2>"
        + line_chart("Gradient norm", norm, "training tokens", "norm", bands, zero=True)
        + _skipped(records)
    )


def _validation(records: list[dict[str, Any]], x: list[float], bands: list[Band]) -> str:
    """A line for each source that was validated on, in every stage that mixes it."""
    names = list(dict.fromkeys(name for record in records for name in record.get("validation_loss", ())))
    lines = [
        Series(name, x, [record.get("validation_loss", {}).get(name) for record in records], number % NUM_COLOURS)
        for number, name in enumerate(names)
    ]
    chart = line_chart("Loss on held-out documents", lines, "training tokens", "cross-entropy, nats", bands)
    return "<h2>Validation</h2>" + chart


def _skipped(records: list[dict[str, Any]]) -> str:
    """What is to say of steps that were left out."""
    steps = [f"{record['stage']} {record['step']}" for record in records if record.get("skipped")]
    if not steps:
        return ""
    more = f" and {len(steps) - MAX_SKIPPED} more" * (len(steps) > MAX_SKIPPED)
    return f"<p>Skipped, since loss or gradient leapt: {escape(', '.join(steps[:MAX_SKIPPED]))}{more}.</p>"


def _token_axis(records: list[dict[str, Any]]) -> tuple[list[float], list[Band]]:
    """Tokens trained on after each step, and the stretch of each stage."""
    x = [float(total) for total in accumulate(record["tokens"] for record in records)]
    bands: list[Band] = []
    for name in dict.fromkeys(record["stage"] for record in records):
        places = [place for place, record in zip(x, records, strict=True) if record["stage"] == name]
        bands.append(Band(name, bands[-1].end if bands else 0.0, places[-1]))
    return x, bands


def _experts(records: list[dict[str, Any]]) -> str:
    x, bands = _token_axis(records)
    loads = [record["expert_load"] for record in records if record.get("expert_load")]
    violation = [Series("max violation", x, [record.get("max_violation") for record in records], 3)]
    dead = [Series("dead experts", x, [record.get("dead_experts") for record in records], 1)]
    return (
        "<h2>Expert load</h2>"
        + line_chart(
            "Largest excess of an expert over the mean load",
            violation,
            "training tokens",
            "max load / mean - 1",
            bands,
        )
        + line_chart(
            "Experts of all layers without a token in a step", dead, "training tokens", "experts", bands, zero=True
        )
        + "<p>Share of the routed tokens of each expert, at the end of training (the last layer is the MTP layer):</p>"
        + heat_map("Expert load at the end", loads[-1] if loads else [], "layer", "expert")
    )


def _resources(train: list[dict[str, Any]], rl: list[dict[str, Any]]) -> str:
    records = train + rl
    seconds = [float(total) for total in accumulate(record["seconds"] for record in records)]
    speed = [Series("throughput", seconds, [record["tokens_per_s"] for record in records], 0)]
    memory = [
        Series("peak resident memory", seconds, [record["peak_gib"] for record in records], 1),
        Series("peak memory of the device", seconds, [record.get("peak_device_gib") for record in records], 2),
    ]
    mfu = [Series("share of the measured peak (MFU)", seconds, [record.get("mfu") for record in records], 2)]
    return (
        "<h2>Throughput</h2>"
        + line_chart("Throughput", speed, "seconds of training and RL", "tokens/s", zero=True)
        + line_chart("Share of the measured peak", mfu, "seconds of training and RL", "share", zero=True)
        + "<h2>Memory</h2>"
        + line_chart("Peak memory", memory, "seconds of training and RL", "GiB", zero=True)
    )


def _samples(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    if not lines:
        return '<h2>Samples</h2><p class="missing">No samples yet.</p>'
    parts: list[str] = []
    for line in lines[-MAX_SAMPLES:]:
        sample = json.loads(line)
        verdict = "right" if sample["reward"] == 1 else "wrong"
        expected = escape(str(sample["answer"]))
        parts.append(
            f'<details class="sample"><summary><span class="{verdict}">{verdict}</span> '
            f'<span class="muted">{escape(sample["when"])}</span> {escape(sample["question"])}</summary>'
            f"<pre>{escape(sample['reply'].strip())}</pre><pre>expected: {expected}</pre></details>"
        )
    return "<h2>Samples</h2>" + "".join(parts)
