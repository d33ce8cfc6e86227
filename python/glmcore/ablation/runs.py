"""The runs of an ablation: one for each arm and seed, all from the same trained model."""

import copy
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from glmcore.ablation.config import AblationConfig, ArmConfig
from glmcore.config import merge
from glmcore.data.prepare import prepare
from glmcore.progress import say
from glmcore.recipe import Recipe
from glmcore.rl.fork import fork_run
from glmcore.rl.probe import probe
from glmcore.rl.stage import reinforce
from glmcore.rundir import open_run
from glmcore.train.stages import train_stages


class Ablation:
    """The recipes and directories of an ablation.

    Args:
        config: The ablation.
        folder: Of its file and of the base recipe.
        name: Of its directory.
    """

    def __init__(self, config: AblationConfig, folder: Path, name: str) -> None:
        self.config = config
        self.root = Path(config.dir)
        self.directory = self.root / name
        self._base = merge([folder / config.base], [])

    def directory_of(self, arm: str, seed: int) -> Path:
        """Where the run of an arm with a seed is."""
        return self.directory / f"{arm}-{seed}"

    def base_recipe(self) -> Recipe:
        """The recipe of the common model."""
        return self._recipe(self.root / "base", {})

    def probe_recipe(self) -> Recipe:
        """The recipe of the offline pass: what all arms have in common, without a curriculum."""
        rl = {key: value for key, value in self.config.recipe.get("rl", {}).items() if key != "curriculum"}
        return self._recipe(self.directory / "probe", {"rl": rl})

    def recipe_of(self, arm: ArmConfig, seed: int) -> Recipe:
        """The recipe of an arm with a seed."""
        values = _merged(self.config.recipe, arm.recipe)
        if self.config.probe and "curriculum" in values.get("rl", {}):
            values["rl"]["curriculum"].setdefault("probe", str(self.directory / "probe" / "probe.jsonl"))
        return self._recipe(self.directory_of(arm.name, seed), values, seed=seed)

    def run(self) -> None:
        """Train the common model, probe the tasks and run all arms; what is finished is not repeated.

        Raises:
            ConfigError: An arm's recipe is wrong; nothing has been run.
            GlmcoreError: One of the runs failed; it can be gone on with.
        """
        # Seed by seed, so that an ablation that is cut short has compared something.
        recipes = [self.recipe_of(arm, seed) for seed in self.config.seeds for arm in self.config.arms]
        with open_run(self.base_recipe()) as directory:
            prepare(directory)
            train_stages(directory)
        if self.config.probe:
            fork_run(self.root / "base", self.probe_recipe())
            with open_run(self.probe_recipe()) as directory:
                say(f"difficulty of the tasks: {probe(directory)}")
        for recipe in recipes:
            fork_run(self.root / "base", recipe)
        if self.config.jobs == 1:
            for recipe in recipes:
                _reinforce(recipe)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.config.jobs, context) as pool:
            list(pool.map(_reinforce, recipes))

    def _recipe(self, directory: Path, values: dict[str, Any], seed: int | None = None) -> Recipe:
        run: dict[str, Any] = {"dir": str(directory)} | ({} if seed is None else {"seed": seed})
        origin = f"{self.config.title}: {directory.name}"
        return Recipe.from_dict(_merged(self._base, values, {"run": run}), origin)

    def finished(self) -> Iterator[tuple[str, int, Path]]:
        """Arm, seed and directory of every run that there is."""
        for arm in self.config.arms:
            for seed in self.config.seeds:
                if self.directory_of(arm.name, seed).exists():
                    yield arm.name, seed, self.directory_of(arm.name, seed)


def _reinforce(recipe: Recipe) -> None:
    say(f"{recipe.run.dir}")
    with open_run(recipe) as directory:
        if not directory.station_done("rl"):
            reinforce(directory)


def _merged(*tables: dict[str, Any]) -> dict[str, Any]:
    """Tables merged one into the other, later values winning; lists are replaced whole."""
    result: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            old: Any = result.get(key)
            if isinstance(old, dict) and isinstance(value, dict):
                result[key] = _merged(old, value)
            else:
                result[key] = copy.deepcopy(value)
    return result
