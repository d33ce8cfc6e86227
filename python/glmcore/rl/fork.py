"""A run that begins where another one has finished its training stages."""

import os
import shutil
from pathlib import Path

import tomli_w

from glmcore.durable import atomic_directory, write_file
from glmcore.errors import RunError
from glmcore.recipe import Recipe
from glmcore.rundir import RunDirectory

RL_STATIONS = ("rl", "evaluation", "export", "report")


def fork_run(base: Path, recipe: Recipe) -> bool:
    """Make the directory of `recipe` with the tokenizer and the trained weights of the run in `base`.

    Files are hard links where the disk allows it: checkpoints are never written to again. A directory that is there
    stays as it is; gives False then.

    Raises:
        RunError: The training stages of `base` are not finished.
        CheckpointError: Its checkpoint is damaged.
    """
    path = Path(recipe.run.dir)
    if path.exists():
        return False
    source = RunDirectory(base, recipe)
    last = len(recipe.train.stages) - 1
    trained = sorted(source.checkpoints.glob(f"{last:02d}-*"))
    if not trained or not source.station_done(recipe.train.stages[-1].name):
        raise RunError(f"the training stages of {base} are not finished: run `glmcore train` first")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(path) as made:
        shutil.copytree(source.tokenizer, made / "tokenizer")
        shutil.copytree(trained[-1], made / "checkpoints" / trained[-1].name, copy_function=_link)
        target = RunDirectory(made, recipe)
        stations = [line for line in source.stations()["stations"] if line["name"] not in RL_STATIONS]
        target.record(stations=stations)
        write_file(made / "recipe.toml", tomli_w.dumps(recipe.model_dump(exclude_none=True)))
    return True


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)
