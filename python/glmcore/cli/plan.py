"""The verb `plan`: what a recipe takes on a cluster, on paper."""

import argparse
import json
from typing import Any

from glmcore.cli.recipes import load_recipe
from glmcore.cli.verb import add_verb


def add_verbs(verbs: Any) -> None:
    """Declare it."""
    plan = add_verb(
        verbs,
        "plan",
        "reckon what the stages of a recipe take on a cluster: memory, time, layouts",
        "  glmcore plan glm-4.6 --gpus 1024 --gpu h200\n"
        "  glmcore plan glm-4.5-air --gpus 256 --gpu h100 --layouts 10 --assume matmul=0.6 overlap=0.5\n"
        "  glmcore plan glm-4.6 --gpus 1024 --gpu b200 --stage repository --parallel data=128 context=8 expert=32\n"
        "  glmcore plan glm-4.6 --gpus 1024 --gpu h200 --json | jq '.stages[] | {name, days}'",
    )
    plan.add_argument("settings", nargs="+", metavar="RECIPE|KEY=VALUE")
    plan.add_argument("--gpus", type=_count, required=True, metavar="N", help="GPUs")
    plan.add_argument("--gpu", default="h200", choices=("h100", "h200", "b200"), help="their kind (default: h200)")
    plan.add_argument(
        "--parallel", nargs="+", metavar="KEY=N", help="this layout alone, as in [parallel] (default: try all)"
    )
    plan.add_argument("--stage", metavar="NAME", help="this stage alone")
    plan.add_argument("--layouts", type=_count, default=3, metavar="N", help="layouts to show of each stage")
    plan.add_argument("--assume", nargs="+", default=[], metavar="KEY=SHARE", help="efficiencies; see docs/plan.md")
    plan.add_argument("--json", action="store_true", help="print all figures as JSON, in bytes and seconds")
    plan.set_defaults(command=_plan)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _plan(args: argparse.Namespace) -> None:
    from glmcore.config import merge
    from glmcore.model.parallel.config import ParallelConfig
    from glmcore.plan.hardware import GPUS, Assumptions
    from glmcore.plan.planner import Planner, stage_loads
    from glmcore.plan.table import print_plan, to_json

    recipe = load_recipe(args.settings)
    assumptions = Assumptions.from_dict(merge([], args.assume), origin="--assume")
    layout = None if args.parallel is None else ParallelConfig.from_dict(merge([], args.parallel), origin="--parallel")
    planner = Planner(recipe.model, GPUS[args.gpu], args.gpus, assumptions)
    plans = [planner.plan(stage, layout, args.layouts) for stage in stage_loads(recipe.train, args.stage)]
    if args.json:
        print(json.dumps(to_json(planner, plans), indent=1))
    else:
        print_plan(planner, plans)
