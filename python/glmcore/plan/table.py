"""A plan as text for people and as JSON for programs."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from glmcore.model.counts import ParameterCounts
from glmcore.plan.hardware import Assumptions, Gpu
from glmcore.plan.layouts import describe
from glmcore.plan.planner import DAY, StagePlan, days

GB = 1e9
KEPT = {"none": "all", "selective": "products", "full": "block inputs"}
"""What blocks keep for the backward pass, by the name of the checkpointing."""


def to_json(
    counts: ParameterCounts, gpu: Gpu, num_gpus: int, assumptions: Assumptions, plans: Sequence[StagePlan]
) -> dict[str, Any]:
    """Everything that the tables show, in bytes, seconds and operations."""
    return {
        "parameters": _parameters(counts),
        "gpu": vars(gpu),
        "num_gpus": num_gpus,
        "assumptions": assumptions.model_dump(),
        "stages": [
            {
                **vars(plan.stage),
                "flops_per_token": plan.flops_per_token,
                "days": plan.seconds / DAY if plan.candidates else None,
                "gpu_hours": plan.seconds / 3600 * num_gpus if plan.candidates else None,
                "layouts": [candidate.to_json() for candidate in plan.candidates],
            }
            for plan in plans
        ],
    }


def print_plan(
    counts: ParameterCounts, gpu: Gpu, num_gpus: int, assumptions: Assumptions, plans: Sequence[StagePlan]
) -> None:
    """Print parameters, the table of stages, and of each stage its best layouts with memory and time by component."""
    console = Console(highlight=False, width=150)
    parameters = _parameters(counts)
    console.print(
        f"{parameters['total'] / 1e9:,.2f}B parameters: {parameters['body_and_mtp'] / 1e9:,.2f}B in layers, MTP layer "
        f"included, {parameters['embeddings'] / 1e9:,.2f}B in embedding and head; "
        f"{parameters['active'] / 1e9:,.2f}B active for a token ({parameters['active_without_mtp'] / 1e9:,.2f}B "
        "without MTP), embeddings not counted"
    )
    shares = ", ".join(f"{name} {value:g}" for name, value in assumptions.model_dump().items())
    console.print(f"{num_gpus:,} x {gpu.name}, on paper; assumed: {shares}\n")
    console.print(_stages(plans, num_gpus))
    for plan in plans:
        if plan.candidates:
            best = plan.candidates[0]
            console.print(_layouts(plan))
            console.print(_components("the first, GB for a GPU", vars(best.memory), GB))
            console.print(_components("the first, seconds of a step", vars(best.time), 1.0) + "\n")


def _parameters(counts: ParameterCounts) -> dict[str, int]:
    return {
        "total": counts.total,
        "body_and_mtp": counts.body + counts.mtp,
        "embeddings": counts.embeddings,
        "active": counts.active_body + counts.active_mtp,
        "active_without_mtp": counts.active_body,
    }


def _stages(plans: Sequence[StagePlan], num_gpus: int) -> Table:
    table = Table("stage", title="stages, each on its fastest layout", title_justify="left")
    for heading in (
        "tokens",
        "length",
        "tokens/step",
        "GFLOP/token",
        "s/step",
        "tokens/s/GPU",
        "MFU",
        "days",
        "GPU-hours",
    ):
        table.add_column(heading, justify="right")
    table.add_column("layout")
    for plan in plans:
        stage = plan.stage
        shape = [f"{stage.num_tokens:.4g}", f"{stage.sequence_length:,}", f"{stage.tokens_per_step:,}"]
        shape.append(f"{plan.flops_per_token / 1e9:,.0f}")
        if not plan.candidates:
            table.add_row(stage.name, *shape, *["-"] * 5, "no layout fits")
            continue
        best = plan.candidates[0]
        rate = stage.tokens_per_step / best.time.total / num_gpus
        figures = [f"{best.time.total:,.2f}", f"{rate:,.0f}", f"{best.mfu:.0%}"]
        figures += [f"{plan.seconds / DAY:,.2f}", f"{plan.seconds / 3600 * num_gpus:,.0f}"]
        table.add_row(stage.name, *shape, *figures, describe(best.layout))
    if all(plan.candidates for plan in plans):
        total = days(plans)
        tokens = sum(plan.stage.num_tokens for plan in plans)
        table.add_section()
        table.add_row("all", f"{tokens:.4g}", *[""] * 6, f"{total:,.2f}", f"{total * 24 * num_gpus:,.0f}", "")
    return table


def _layouts(plan: StagePlan) -> Table:
    table = Table("layout", "micro-batches", "kept", title=f"{plan.stage.name}: layouts that fit", title_justify="left")
    for heading in ("GB/GPU", "s/step", "MFU"):
        table.add_column(heading, justify="right")
    for candidate in plan.candidates:
        load = candidate.load
        batches = f"{load.num_micro_batches} x {load.rows_per_micro_batch} rows"
        figures = [f"{candidate.memory.total / GB:.1f}", f"{candidate.time.total:,.2f}", f"{candidate.mfu:.0%}"]
        table.add_row(describe(candidate.layout), batches, KEPT[load.checkpointing], *figures)
    return table


def _components(title: str, values: dict[str, float], unit: float) -> str:
    parts = ", ".join(f"{name} {value / unit:,.2f}" for name, value in values.items() if value / unit >= 0.005)
    return f"{title}: {parts}"
