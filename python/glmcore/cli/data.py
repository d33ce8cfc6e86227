"""Verbs for data: data prepare."""

import argparse
from typing import Any

from glmcore.cli.verb import add_verb
from glmcore.errors import ConfigError


def add_verbs(verbs: Any) -> None:
    """Declare them."""
    data = add_verb(
        verbs,
        "data",
        "prepare the data of a recipe, and look at what was prepared",
        "  glmcore data prepare nano run.dir=runs/mine\n  glmcore data inspect runs/mine --show 3\n"
        "  glmcore data stats runs/mine",
    )
    actions = data.add_subparsers(required=True, metavar="ACTION")
    prepare = add_verb(
        actions,
        "prepare",
        "read the sources, make the tokenizer, write token shards",
        "  glmcore data prepare nano run.dir=runs/mine corpus.problems.chain_sum=2000\n"
        "  glmcore data prepare my_data.toml\n  glmcore data prepare my_data.toml --engine ray",
    )
    prepare.add_argument("settings", nargs="+", metavar="RECIPE|KEY=VALUE")
    prepare.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    prepare.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="who does the work: this machine, or a Ray cluster"
    )
    prepare.set_defaults(command=_prepare, resumable=True)


def _prepare(args: argparse.Namespace) -> None:
    from glmcore.recipe import find_recipe, load_data_recipe

    files = [setting for setting in args.settings if "=" not in setting]
    overrides = [setting for setting in args.settings if "=" in setting]
    if not files:
        raise ConfigError("no recipe given: name a TOML file or a packaged recipe such as nano")
    recipe = load_data_recipe([find_recipe(file) for file in files], overrides)
    if args.dry_run:
        import tomli_w

        print(tomli_w.dumps(recipe.model_dump(exclude_none=True)), end="")
        return
    from glmcore.data import prepare

    prepare.run(recipe, engine=args.engine, recheck=True)
