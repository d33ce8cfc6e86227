"""The verb rl: the RL stage of a recipe, and what goes before and after it."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glmcore.cli.runs import recipe_or_print, refuse_ranks
from glmcore.cli.verb import add_verb
from glmcore.errors import ConfigError

ACTIONS = """\
before RECIPE may stand what to do instead of the stage itself:
  probe RECIPE     how often the trained model solves each task of rl.pool, into probe.jsonl: the curriculum's beginning
  distill RECIPE   SFT data from the answers of the RL policy, into distilled/sft.jsonl
  view RUN         one HTML page with the trajectories that a run has kept
  ablate FILE      run the arms and seeds of an ablation, and write its tables and plots

"""


def add_verbs(verbs: Any) -> None:
    """Declare it."""
    rl = add_verb(
        verbs,
        "rl",
        "run the RL stage of a recipe, or what goes before and after it",
        "  glmcore rl nano run.dir=runs/mine\n  glmcore rl probe nano run.dir=runs/mine rl.pool.num_tasks=2000\n"
        "  glmcore rl distill nano run.dir=runs/mine rl.distill.num_samples=16\n  glmcore rl view runs/mine\n"
        "  glmcore rl ablate recipes/ablations/aggregation.toml dir=runs/ablations seeds=[0,1,2]",
    )
    rl.epilog = ACTIONS + (rl.epilog or "")
    rl.add_argument("settings", nargs="+", metavar="[ACTION] RECIPE|KEY=VALUE")
    rl.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    rl.set_defaults(command=_rl, resumable=True)


def _rl(args: argparse.Namespace) -> None:
    actions: dict[str, Callable[[argparse.Namespace], None]] = {
        "probe": _probe,
        "distill": _distill,
        "view": _view,
        "ablate": _ablate,
    }
    action = actions.get(args.settings[0], _train)
    if action is not _train:
        args.settings = args.settings[1:]
    refuse_ranks("rl")
    action(args)


def _train(args: argparse.Namespace) -> None:
    recipe = recipe_or_print(args)
    if recipe:
        from glmcore import rl

        rl.run(recipe)


def _probe(args: argparse.Namespace) -> None:
    recipe = recipe_or_print(args)
    if recipe:
        from glmcore.rl import probe

        print(json.dumps(probe.run(recipe)))


def _distill(args: argparse.Namespace) -> None:
    recipe = recipe_or_print(args)
    if recipe:
        from glmcore.rl import distill

        print(json.dumps(distill.run(recipe)))


def _view(args: argparse.Namespace) -> None:
    if len(args.settings) != 1:
        raise ConfigError("name one run directory: glmcore rl view RUN")
    from glmcore.report.trajectories import write_viewer

    print(f"trajectories: {write_viewer(Path(args.settings[0]))}", file=sys.stderr)


def _ablate(args: argparse.Namespace) -> None:
    from glmcore.ablation.config import load_ablation

    config, folder = load_ablation(args.settings)
    from glmcore.ablation.page import write_ablation
    from glmcore.ablation.runs import Ablation

    [name] = [Path(setting).stem for setting in args.settings if "=" not in setting]
    ablation = Ablation(config, folder, name)
    if args.dry_run:
        for seed in config.seeds:
            for arm in config.arms:
                print(ablation.recipe_of(arm, seed).run.dir)
        return
    ablation.run()
    page, table = write_ablation(ablation)
    print(table)
    print(f"report: {page}", file=sys.stderr)
