"""The training stages of a recipe, from wherever the run stands to their end."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from glmcore.errors import ConfigError, RunError
from glmcore.metrics import MetricLog
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.parallel.apply import parallelize
from glmcore.model.parallel.processes import num_local_processes
from glmcore.model.parallel.ranks import Ranks
from glmcore.progress import say
from glmcore.recipe import Recipe
from glmcore.rundir import RunDirectory, describe_machine, open_run
from glmcore.tokenizer import Tokenizer
from glmcore.train.checkpoint import CheckpointStore, Progress
from glmcore.train.config import StageConfig
from glmcore.train.loop import StageLoop
from glmcore.train.optim import Optimizer
from glmcore.train.peak import measure_peak_flops
from glmcore.train.rows import stage_rows, stage_validation
from glmcore.train.schedule import TrainPlan


def run(recipe: Recipe, stage: str | None = None, ranks: Ranks | None = None) -> None:
    """Run the training stages of `recipe` whose data has been prepared; goes on where an earlier call stopped.

    Args:
        recipe: What to train.
        stage: Name of the only stage to run, from the end of the one before it; None for all.
        ranks: The processes that train together, all of which call; by default as `recipe.parallel` says.

    Raises:
        ConfigError: There is no such stage, or the processes or the model do not fit `recipe.parallel`.
        RunError: The run directory is in use or belongs to another recipe, the stage before is not finished, or a loss
            or gradient is not finite.
        DataError: A shard is missing or damaged.
        CheckpointError: All checkpoints are damaged, or one cannot be written.
    """
    ranks = ranks or Ranks.of_recipe(recipe)
    with open_run_together(recipe, ranks) as directory:
        train_stages(directory, stage, ranks)


@contextmanager
def open_run_together(recipe: Recipe, ranks: Ranks) -> Generator[RunDirectory, None, None]:
    """`open_run` on the first rank; the others wait for it, go by the recipe that it has resolved and write nothing."""
    if not ranks.is_first:
        yield RunDirectory(Path(recipe.run.dir), ranks.from_first(None), writes=False)
        return
    with open_run(recipe) as run:
        ranks.from_first(run.recipe)
        yield run


def train_stages(run: RunDirectory, only: str | None = None, ranks: Ranks | None = None) -> None:
    """Run the stages that are not finished, or one of them; see `run`."""
    ranks = ranks or Ranks.of_recipe(run.recipe)
    configure_torch(run.recipe)
    config, plan = run.recipe.train, TrainPlan(run.recipe.train)
    plan.check_layout(ranks.config)
    store = CheckpointStore(run.checkpoints, config.checkpoint)
    found = store.latest()
    progress = found.progress if found else Progress(0, 0)
    metrics = MetricLog(run.metrics, run.tensorboard if config.tensorboard and ranks.is_first else None)
    for index, stage in enumerate(config.stages):  # a kill can fall between a stage's last checkpoint and its record
        if Progress(index, plan.stages[index].num_steps) <= progress and not run.station_done(stage.name):
            record_stage(run, stage, metrics)
    wanted = range(len(config.stages)) if only is None else [_startable(plan, only, progress)]
    unfinished = [index for index in wanted if progress < Progress(index, plan.stages[index].num_steps)]
    if not unfinished:
        return
    model = new_model(run, ranks)
    optimizer = Optimizer(model, config.optimizer)
    if found:
        if ranks.is_first:
            say(f"resuming {config.stages[progress.stage_index].name} after step {progress.step}")
        store.load(found, model, optimizer)
    peak = peak_flops(run, ranks)
    for index in unfinished:
        stage = config.stages[index]
        first_step = progress.step + 1 if index == progress.stage_index else 1
        if stage.kind == "sft" and first_step == 1:
            optimizer = Optimizer(model, config.optimizer)
        if ranks.is_first:
            metrics.truncate_after(stage.name, first_step - 1)
        loop = StageLoop(
            config,
            index,
            model,
            optimizer,
            store,
            ranks,
            validation=stage_validation(run, index, model.config.pad_token_id),
            peak_flops=peak,
        )
        rows = stage_rows(run, index, pad_id=model.config.pad_token_id, first_step=first_step, writes=ranks.is_first)
        loop.run(rows, first_step, metrics)
        metrics.close()
        if ranks.is_first:
            record_stage(run, stage, metrics)


def _startable(plan: TrainPlan, name: str, progress: Progress) -> int:
    """Position of a stage, all before it being finished.

    Raises:
        ConfigError: There is no such stage.
        RunError: The one before is not finished.
    """
    names = [stage.name for stage in plan.config.stages]
    if name not in names:
        raise ConfigError(f"no stage {name!r}: the recipe has {', '.join(names)}")
    index = names.index(name)
    if index and progress < Progress(index - 1, plan.stages[index - 1].num_steps):
        raise RunError(
            f"stage {name!r} goes on from the end of {names[index - 1]!r}, and the run is at step {progress.step} of "
            f"{names[progress.stage_index]!r}: run the stages before it first"
        )
    return index


def peak_flops(run: RunDirectory, ranks: Ranks) -> float:
    """Operations a second that a rank's device reaches in matrix products; measured once a run for each device.

    Figures of a run stay comparable: one that goes on, on the same device, takes what was measured first.
    """
    dtype = run.recipe.train.compute.dtype
    is_gpu = ranks.device_type == "cuda"
    name = f"{torch.cuda.get_device_name(ranks.device) if is_gpu else describe_machine()['cpu']}, {dtype}"
    if not is_gpu:
        name += f", {torch.get_num_threads()} threads"
    known = run.stations().get("peak_flops", {})
    if name in known:
        return known[name]
    measured = measure_peak_flops(ranks.device, getattr(torch, dtype))
    if ranks.is_first:
        run.record(peak_flops={**known, name: measured})
    return measured


def record_stage(run: RunDirectory, stage: StageConfig, metrics: MetricLog) -> None:
    """Record what a finished stage took: the sum of its steps, whatever interrupted it."""
    steps = [record for record in metrics.read() if record["stage"] == stage.name]
    seconds = sum(record["seconds"] for record in steps)
    tokens = sum(record["tokens"] for record in steps)
    run.record_station(stage.name, seconds, tokens=tokens, note=f"{len(steps)} steps")


def configure_torch(recipe: Recipe) -> None:
    """Make arithmetic repeatable: a fixed number of threads, deterministic kernels and the recipe's seed."""
    torch.set_num_threads(max(1, recipe.run.num_threads // num_local_processes()))
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(recipe.run.seed)


def new_model(run: RunDirectory, ranks: Ranks | None = None) -> Glm:
    """The recipe's model with fresh weights, its stop tokens those of the run's tokenizer.

    Args:
        run: Its recipe and tokenizer.
        ranks: Who shares out the model; by default this process on its own holds it, on the CPU.
    """
    with torch.device("meta"):
        model = Glm(model_config(run))
    if ranks is not None:
        compute = run.recipe.train.compute
        model = parallelize(
            model,
            ranks,
            compute_dtype=None if compute.dtype == "float32" else getattr(torch, compute.dtype),
            checkpointing=compute.activation_checkpointing,
            compile_blocks=compute.compile,
        )
    return model.to_empty(device="cpu" if ranks is None else ranks.device).init_weights(run.recipe.run.seed)


def model_config(run: RunDirectory) -> GlmConfig:
    """The recipe's model section with the ids of the run's tokenizer filled in."""
    tokenizer = Tokenizer.from_pretrained(str(run.tokenizer))
    stops = [tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    return run.recipe.model.model_copy(update={"eos_token_id": stops, "pad_token_id": stops[0]})
