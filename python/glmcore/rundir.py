"""The directory of a run: who owns it, which recipe it follows, what each station took."""

import fcntl
import json
import os
import platform
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic

import tomli_w
from typing_extensions import TypeVar

from glmcore.config import Config
from glmcore.durable import write_file
from glmcore.errors import RunError
from glmcore.recipe import DataRecipe, Recipe, load_data_recipe

CHANGEABLE = frozenset(
    {
        "parallel",
        "run.device",
        "run.num_threads",
        "train.checkpoint",
        "train.validation",
        "train.log_load_every_steps",
        "train.tensorboard",
        "rl.checkpoint_every_steps",
        "rl.ray",
        "rl.sync_timeout_s",
        "rl.distill",
        "rl.evaluation",
        "rl.probe",
        "rl.trajectory_log",
    }
)
"""What may be otherwise when a run is gone on with: how the work is spread, saved and watched. Other ranks or threads
add up in another order, so what follows is the same to rounding and no longer to the bit."""

_Recipe = TypeVar("_Recipe", bound=DataRecipe, covariant=True, default=Recipe)


@dataclass(frozen=True)
class RunDirectory(Generic[_Recipe]):
    """Paths of a run and its records. Made by `open_run`."""

    path: Path
    recipe: _Recipe
    """The resolved recipe, the same for the whole life of the run."""
    writes: bool = True
    """False on all ranks of a run but the first: nothing is recorded there."""

    @property
    def corpus(self) -> Path:
        """Documents, one JSONL file for each part of a source."""
        return self.path / "corpus"

    @property
    def tokenizer(self) -> Path:
        """tokenizer.json and its companions."""
        return self.path / "tokenizer"

    @property
    def shards(self) -> Path:
        """Token shards of all sources, and their manifest."""
        return self.path / "shards"

    @property
    def checkpoints(self) -> Path:
        """Resumable state of training and RL."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object per step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same as TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def probe(self) -> Path:
        """How often each training task was solved in the offline pass."""
        return self.path / "probe.jsonl"

    @property
    def evaluations(self) -> Path:
        """Results of the suites while RL goes on."""
        return self.path / "evaluations.jsonl"

    @property
    def shown(self) -> Path:
        """Trajectories that are kept to be looked at, a file for each step."""
        return self.path / "shown"

    @property
    def distilled(self) -> Path:
        """SFT data from the RL policy."""
        return self.path / "distilled"

    @property
    def export(self) -> Path:
        """Hugging Face checkpoints: `bf16` and `fp8`."""
        return self.path / "export"

    def stations(self) -> dict[str, Any]:
        """The contents of stations.json."""
        file = self.path / "stations.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"stations": []}

    def station_done(self, name: str) -> bool:
        """True when the station has been recorded."""
        return any(station["name"] == name for station in self.stations()["stations"])

    def record_station(self, name: str, seconds: float, *, tokens: int | None = None, note: str = "") -> None:
        """Record a finished station and what it took."""
        rate = tokens / seconds if tokens is not None and seconds > 0 else None
        entry = {"name": name, "seconds": seconds, "tokens": tokens, "tokens_per_s": rate, "note": note}
        record = self.stations()
        record["stations"] = [station for station in record["stations"] if station["name"] != name] + [entry]
        self.record(stations=record["stations"])

    def forget_stations(self, names: Collection[str]) -> None:
        """Take finished stations as not done."""
        self.record(stations=[station for station in self.stations()["stations"] if station["name"] not in names])

    def record(self, **values: Any) -> None:
        """Set top-level keys of stations.json."""
        if not self.writes:
            return
        content = {**self.stations(), **values}
        write_file(self.path / "stations.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def record_samples(self, when: str, samples: list[dict[str, Any]]) -> None:
        """Put sample transcripts into samples.jsonl, in place of earlier ones of the same moment."""
        if not self.writes:
            return
        file = self.path / "samples.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        kept = [line for line in lines if json.loads(line)["when"] != when]
        kept += [json.dumps({"when": when, **sample}, ensure_ascii=False) for sample in samples]
        write_file(file, "".join(f"{line}\n" for line in kept))


@contextmanager
def open_run(recipe: _Recipe, *, renewable: Collection[str] = ()) -> Generator[RunDirectory[_Recipe], None, None]:
    """Make the run's directory or go on with it; one process at a time.

    Args:
        recipe: What the run is to follow.
        renewable: Stations that may be done again for other sources of data: a run that has finished no others takes a
            recipe that differs in `data` and `corpus.path`, and its stations count as not done.

    Raises:
        RunError: Another process runs there, the directory holds something else, or a run with another recipe.
    """
    path = Path(recipe.run.dir)
    file = path / "recipe.toml"
    if path.exists() and not path.is_dir():
        raise RunError(f"run.dir {path} is not a directory")
    if path.is_dir() and not file.exists() and any(entry.name != ".lock" for entry in path.iterdir()):
        raise RunError(f"run.dir {path} is not empty and holds no run: choose another with run.dir=PATH")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise RunError(f"cannot make run.dir {path}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another process works in {path}") from None
        begun = file.exists() and bool(RunDirectory(path, recipe).stations()["stations"])
        if begun and _is_renewed(recipe, file, renewable):
            RunDirectory(path, recipe).forget_stations(renewable)
            begun = False
        resolved = _resolve(recipe, file, begun=begun)
        if not begun or (isinstance(resolved, Recipe) and not isinstance(load_data_recipe([file]), Recipe)):
            write_file(file, tomli_w.dumps(resolved.model_dump(exclude_none=True)))
        run = RunDirectory(path, resolved)
        if "machine" not in run.stations():
            run.record(machine=describe_machine())
        yield run


@contextmanager
def timed(run: RunDirectory[DataRecipe], name: str) -> Generator[dict[str, Any], None, None]:
    """Record station `name` with the time the block takes; the block may fill in `tokens` and `note`."""
    started = time.perf_counter()
    details: dict[str, Any] = {}
    yield details
    run.record_station(name, time.perf_counter() - started, **details)


def _resolve(recipe: _Recipe, file: Path, *, begun: bool) -> _Recipe:
    """Fill in what the recipe leaves to the machine; a run with a finished station keeps what it began with.

    Data that was prepared by a recipe for data alone is gone on with by a whole recipe that agrees on it, and the other
    way round.
    """
    if not begun:
        return _with_run(recipe, num_threads=recipe.run.num_threads or os.cpu_count() or 1)
    first = load_data_recipe([file])
    wanted = _with_run(recipe, num_threads=recipe.run.num_threads or first.run.num_threads, dir=first.run.dir)
    common = type(first) if isinstance(wanted, type(first)) else type(wanted)
    place = _first_difference(common, first, wanted)
    if place is not None:
        raise RunError(f"{file.parent} was begun with another {place}: repeat it, or choose another run.dir=PATH")
    return _with_run(wanted, dir=recipe.run.dir)  # the directory may have been moved


def _is_renewed(recipe: DataRecipe, file: Path, renewable: Collection[str]) -> bool:
    """Whether a recipe differs from that of the run in nothing but the sources, and that can be made good."""
    first, run = load_data_recipe([file]), RunDirectory(file.parent, recipe)
    done = {station["name"] for station in run.stations()["stations"]}
    if not done <= set(renewable) or run.checkpoints.exists() or not isinstance(recipe, type(first)):
        return False
    wanted = _with_run(recipe, num_threads=recipe.run.num_threads or first.run.num_threads, dir=first.run.dir)
    corpus = first.corpus
    if corpus is not None and wanted.corpus is not None:
        corpus = corpus.model_copy(update={"path": wanted.corpus.path})
    renewed = first.model_copy(update={"data": wanted.data, "corpus": corpus})
    return first.own_data != wanted.own_data and _first_difference(type(first), renewed, wanted) is None


def _with_run(recipe: _Recipe, **values: Any) -> _Recipe:
    return recipe.model_copy(update={"run": recipe.run.model_copy(update=values)})


def _first_difference(kind: type[Config], a: Config, b: Config, prefix: str = "") -> str | None:
    """Dotted name of the first field of `kind` that differs and may not."""
    for field in kind.model_fields:
        ours, theirs, name = getattr(a, field), getattr(b, field), prefix + field
        if name in CHANGEABLE:
            continue
        if isinstance(ours, Config) and isinstance(theirs, Config):
            inner = _first_difference(type(ours), ours, theirs, f"{name}.")
            if inner is not None:
                return inner
        elif ours != theirs:
            return name
    return None


def describe_machine() -> dict[str, Any]:
    """What figures of this run depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "date": datetime.now(tz=timezone.utc).strftime("%Y-%m-%d"),
    }
