"""Verbs that go the road of a recipe: quickstart, train, report."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmcore.cli.recipes import load_recipe
from glmcore.cli.verb import add_verb
from glmcore.errors import ConfigError

if TYPE_CHECKING:
    from glmcore.recipe import Recipe


def add_verbs(verbs: Any) -> None:
    """Declare them."""
    quickstart = add_verb(
        verbs,
        "quickstart",
        "go the whole road with a nano model: corpus, tokenizer, training, RL, export, report",
        "  glmcore quickstart\n  glmcore quickstart run.dir=runs/mine run.seed=1\n"
        "  glmcore quickstart --corpus ~/notes run.dir=runs/notes",
    )
    quickstart.add_argument("settings", nargs="*", metavar="FILE.toml|KEY=VALUE", help="recipe (default: nano)")
    quickstart.add_argument("--corpus", metavar="PATH", help="your own text, JSONL file or directory")
    quickstart.set_defaults(command=_quickstart, resumable=True)

    train = add_verb(
        verbs,
        "train",
        "run the training stages of a recipe",
        "  glmcore train nano run.dir=runs/mine\n  glmcore train nano run.dir=runs/mine --stage general\n"
        "  glmcore train glm-4.6 --dry-run",
    )
    train.add_argument("--stage", metavar="NAME", help="run this stage alone, from the end of the one before it")
    _add_settings(train, _train)

    report = add_verb(
        verbs,
        "report",
        "write and print the report of a run",
        "  glmcore report runs/nano\n  glmcore report runs/nano --json | jq .rl",
    )
    report.add_argument("run", type=Path, help="run directory")
    form = report.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the figures as JSON")
    form.add_argument("--markdown", action="store_true", help="print the table of stations as Markdown")
    report.set_defaults(command=_report)


def _add_settings(parser: argparse.ArgumentParser, command: Any) -> None:
    parser.add_argument("settings", nargs="+", metavar="RECIPE|KEY=VALUE")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    parser.set_defaults(command=command, resumable=True)


def refuse_ranks(verb: str) -> None:
    """Stop where torchrun has started several processes.

    Raises:
        ConfigError: It has.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"{verb} is the work of one process: of the verbs only train spreads over the ranks of torchrun"
        )


def recipe_or_print(args: argparse.Namespace) -> "Recipe | None":
    """The recipe of the settings; with `--dry-run` it is printed instead."""
    recipe = load_recipe(args.settings)
    if not args.dry_run:
        return recipe
    if os.environ.get("RANK", "0") != "0":
        return None
    import tomli_w

    print(tomli_w.dumps(recipe.model_dump(exclude_none=True)), end="")
    return None


def _quickstart(args: argparse.Namespace) -> None:
    extra = [] if args.corpus is None else [f"corpus.path={json.dumps(str(Path(args.corpus).absolute()))}"]
    recipe = load_recipe(args.settings, default="nano", extra=extra)
    refuse_ranks("quickstart")
    from glmcore.quickstart import quickstart

    quickstart(recipe)


def _print_stages(recipe: "Recipe") -> None:
    """What the stages come to, for people."""
    from glmcore.progress import say
    from glmcore.train.schedule import TrainPlan

    plan = TrainPlan(recipe.train)
    for stage, steps in zip(recipe.train.stages, plan.stages, strict=True):
        first, last = steps.sizes
        sizes = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        say(f"{stage.name}: {steps.num_tokens:,} tokens in {steps.num_steps:,} steps of {sizes}")


def _train(args: argparse.Namespace) -> None:
    recipe = recipe_or_print(args)
    if recipe is None:
        _print_stages(load_recipe(args.settings))
    else:
        from glmcore import train
        from glmcore.data import prepare
        from glmcore.model.parallel.processes import ending_together
        from glmcore.model.parallel.ranks import Ranks

        with ending_together():
            ranks = Ranks.of_recipe(recipe)
            if ranks.is_first:
                prepare.run(recipe)
            train.run(recipe, args.stage, ranks)


def _report(args: argparse.Namespace) -> None:
    from glmcore.report import format_table, summarize, write_report

    summary = summarize(args.run)
    page = write_report(args.run)
    if args.json:
        print(json.dumps(summary, indent=1, ensure_ascii=False))
        return
    print(format_table(summary, markdown=args.markdown))
    print(f"report: {page}", file=sys.stderr)
