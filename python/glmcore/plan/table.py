"""A plan as text for people and as JSON for programs."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from glmcore.model.counts import ParameterCounts
from glmcore.plan.layouts import describe
from glmcore.plan.planner import DAY, Planner, StagePlan, days

GB = 1e9
KEPT = {"none": "all", "selective": "products", "full": "block inputs"}
"""What blocks keep for the backward pass, by the name of the checkpointing."""


def to_json(planner: Planner, plans: Sequence[StagePlan]) -> dict[str, Any]:
    """Everything that the tables show, in bytes, seconds and operations."""
    num_gpus = planner.num_gpus
    return {
        "parameters": _parameters(planner.counts),
        "gpu": vars(planner.gpu),
        "num_gpus": num_gpus,
        "assumptions": planner.assumptions.model_dump(),
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


def print_plan(planner: Planner, plans: Sequence[StagePlan]) -> None:
    """Print parameters, the table of stages, and of each stage its best layouts with memory and time by component."""
    counts, num_gpus, assumptions = planner.counts, planner.num_gpus, planner.assumptions
    console = Console(highlight=False, width=150)
    parameters = _parameters(counts)
    console.print(
        "parameters: {total} in all, {body_and_mtp} in layers with the MTP layer, {embeddings} in embedding and head;\n"
        "active for a token, embeddings not counted: {active}, {active_without_mtp} without MTP".format(
            **{name: short(count) for name, count in parameters.items()}
        )
    )
    shares = ", ".join(f"{name} {value:g}" for name, value in assumptions.model_dump().items())
    console.print(f"{num_gpus:,} x {planner.gpu.name}, on paper; assumed: {shares}\n")
    console.print(_stages(planner, plans))
    for plan in plans:
        if plan.candidates:
            best = plan.candidates[0]
            console.print(_layouts(plan))
            console.print(_components("the first, GB for a GPU", vars(best.memory), GB))
            console.print(_components("the first, seconds of a step", vars(best.time), 1.0) + "\n")


def short(number: float) -> str:
    """A number with three or four digits and a letter for thousands, millions, billions or trillions."""
    for factor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.2f}{letter}"
    return f"{number:.3g}"


def _parameters(counts: ParameterCounts) -> dict[str, int]:
    return {
        "total": counts.total,
        "body_and_mtp": counts.body + counts.mtp,
        "embeddings": counts.embeddings,
        "active": counts.active_body + counts.active_mtp,
        "active_without_mtp": counts.active_body,
    }


def _stages(planner: Planner, plans: Sequence[StagePlan]) -> Table:
    num_gpus = planner.num_gpus
    table = Table("stage", title="stages, each on its fastest layout", title_justify="left")
    for heading in (
        "tokens",
        "length",
        "tokens/step",
        "FLOP/token",
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
        shape = [short(stage.num_tokens), f"{stage.sequence_length:,}", short(stage.tokens_per_step)]
        shape.append(short(plan.flops_per_token))
        if not plan.candidates:
            table.add_row(stage.name, *shape, *["-"] * 5, _why_not(planner, plan))
            continue
        best = plan.candidates[0]
        rate = stage.tokens_per_step / best.time.total / num_gpus
        figures = [f"{best.time.total:.3g}", short(rate), f"{best.mfu:.0%}"]
        figures += [f"{plan.seconds / DAY:.3g}", short(plan.seconds / 3600 * num_gpus)]
        table.add_row(stage.name, *shape, *figures, describe(best.layout))
    if all(plan.candidates for plan in plans):
        total = days(plans)
        tokens = sum(plan.stage.num_tokens for plan in plans)
        table.add_section()
        table.add_row("all", short(tokens), *[""] * 6, f"{total:.3g}", short(total * 24 * num_gpus), "")
    return table


def _why_not(planner: Planner, plan: StagePlan) -> str:
    least = plan.least_memory
    if least is None:
        return f"no layout divides {plan.stage.rows_per_step:,} rows a step"
    return f"none fits: the least is {least / GB:,.0f} GB, the GPU has {planner.gpu.memory_bytes / GB:,.0f}"


def _layouts(plan: StagePlan) -> Table:
    table = Table("layout", "micro-batches", "kept", title=f"{plan.stage.name}: layouts that fit", title_justify="left")
    for heading in ("GB/GPU", "s/step", "MFU"):
        table.add_column(heading, justify="right")
    for candidate in plan.candidates:
        load = candidate.load
        batches = f"{load.num_micro_batches} x {load.rows_per_micro_batch} rows"
        figures = [f"{candidate.memory.total / GB:.1f}", f"{candidate.time.total:.3g}", f"{candidate.mfu:.0%}"]
        table.add_row(describe(candidate.layout), batches, KEPT[load.checkpointing], *figures)
    return table


def _components(title: str, values: dict[str, float], unit: float) -> str:
    parts = ", ".join(f"{name} {value / unit:.3g}" for name, value in values.items() if value / unit >= 0.0005)
    return f"{title}: {parts}"
