"""The training stages of a recipe, from wherever the run stands to their end."""

from collections.abc import Mapping, Sequence

import torch

from glmcore.data import manifest
from glmcore.data.blocks import PackedBlocks
from glmcore.data.config import HELD_OUT, USER
from glmcore.data.learned import AllLearned
from glmcore.data.loader import PackedRows, Source
from glmcore.data.prefetch import Rows
from glmcore.data.samples import SampleStream
from glmcore.data.shards import TokenShards
from glmcore.errors import ConfigError, RunError
from glmcore.metrics import MetricLog
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
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
from glmcore.train.schedule import TrainPlan
from glmcore.train.validation import Validation


def run(recipe: Recipe, stage: str | None = None) -> None:
    """Run the training stages of `recipe` whose data has been prepared; goes on where an earlier call stopped.

    Args:
        recipe: What to train.
        stage: Name of the only stage to run, from the end of the one before it; None for all.

    Raises:
        ConfigError: There is no such stage.
        RunError: The run directory is in use or belongs to another recipe, the stage before is not finished, or a loss
            or gradient is not finite.
        DataError: A shard is missing or damaged.
        CheckpointError: The last checkpoint is damaged.
    """
    with open_run(recipe) as directory:
        train_stages(directory, stage)


def train_stages(run: RunDirectory, only: str | None = None) -> None:
    """Run the stages that are not finished, or one of them; see `run`."""
    configure_torch(run.recipe)
    ranks = Ranks(run.recipe.parallel)
    config, plan = run.recipe.train, TrainPlan(run.recipe.train)
    store = CheckpointStore(run.checkpoints, config.checkpoint.keep)
    found = store.latest()
    progress = found[0] if found else Progress(0, 0)
    metrics = MetricLog(run.metrics, run.tensorboard if config.tensorboard and ranks.is_first else None)
    for index, stage in enumerate(config.stages):  # a kill can fall between a stage's last checkpoint and its record
        if Progress(index, plan.stages[index].num_steps) <= progress and not run.station_done(stage.name):
            record_stage(run, stage, metrics)
    chosen = range(progress.stage_index, len(config.stages)) if only is None else [_startable(plan, only, progress)]
    if progress >= Progress(chosen[-1], plan.stages[chosen[-1]].num_steps):
        return
    model = new_model(run)
    optimizer = Optimizer(model, config.optimizer)
    if found:
        say(f"resuming {config.stages[progress.stage_index].name} after step {progress.step}")
        store.load(found[1], model, optimizer)
    peak = peak_flops(run, model, ranks)
    for index in chosen:
        stage = config.stages[index]
        first_step = progress.step + 1 if index == progress.stage_index else 1
        if first_step > plan.stages[index].num_steps:
            continue
        if stage.kind == "sft" and first_step == 1:
            optimizer = Optimizer(model, config.optimizer)
        if ranks.is_first:
            metrics.truncate_after(stage.name, first_step - 1)
        loop = StageLoop(
            config, index, model, optimizer, store, ranks, validation=stage_validation(run, index), peak_flops=peak
        )
        loop.run(stage_rows(run, index), first_step, metrics)
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


def peak_flops(run: RunDirectory, model: Glm, ranks: Ranks) -> float:
    """Operations a second that a rank's device reaches in matrix products; measured once a run for each device.

    Figures of a run stay comparable: one that goes on, on the same device, takes what was measured first.
    """
    weight = model.lm_head.weight
    device = torch.cuda.get_device_name(weight.device) if weight.device.type == "cuda" else describe_machine()["cpu"]
    name = f"{device}, {str(weight.dtype).removeprefix('torch.')}"
    if weight.device.type == "cpu":
        name += f", {torch.get_num_threads()} threads"
    known = run.stations().get("peak_flops", {})
    if name in known:
        return known[name]
    measured = measure_peak_flops(weight.device, weight.dtype)
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
    """Make arithmetic repeatable: a fixed number of threads and deterministic kernels."""
    torch.set_num_threads(recipe.run.num_threads)
    torch.use_deterministic_algorithms(True)


def new_model(run: RunDirectory) -> Glm:
    """The recipe's model with fresh weights, its stop tokens those of the run's tokenizer."""
    return Glm(model_config(run)).init_weights(run.recipe.run.seed)


def model_config(run: RunDirectory) -> GlmConfig:
    """The recipe's model section with the ids of the run's tokenizer filled in."""
    tokenizer = Tokenizer.from_pretrained(str(run.tokenizer))
    stops = [tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    return run.recipe.model.model_copy(update={"eos_token_id": stops, "pad_token_id": stops[0]})


def stage_rows(run: RunDirectory, stage_index: int) -> Rows:
    """The packed rows of a stage, in order; a pure function of recipe and shards.

    Raises:
        DataError: A source of the mixture has no shard.
    """
    recipe = run.recipe
    stage = recipe.train.stages[stage_index]
    mixture: dict[str, float] = dict(stage.mixture)
    corpus = recipe.corpus
    if stage.kind == "pretrain" and corpus is not None and corpus.path is not None and corpus.user_weight:
        mixture[USER] = corpus.user_weight
    seed = recipe.run.seed * 1000 + stage_index
    sources, num_rows = mixture_sources(run, mixture), TrainPlan(recipe.train).stages[stage_index].num_rows
    return packed_rows(stage, sources, num_rows=num_rows, seed=seed, pad_id=model_config(run).pad_token_id)


def stage_validation(run: RunDirectory, stage_index: int) -> Validation | None:
    """Held-out rows of each source of a stage that has any; None without validation."""
    config, stage = run.recipe.train.validation, run.recipe.train.stages[stage_index]
    if config is None:
        return None
    prepared = manifest.read(run.shards)
    groups = [group for name in stage.mixture for group in manifest.groups(run.shards, prepared, name)]
    held_out = [
        Source(group.source, TokenShards.open(group.files), 1.0)
        for group in groups
        if group.bucket == HELD_OUT and group.num_tokens
    ]
    return Validation.of(config, stage, held_out, model_config(run).pad_token_id)


def packed_rows(stage: StageConfig, sources: Sequence[Source], *, num_rows: int, seed: int, pad_id: int) -> Rows:
    """Rows of a stage as its `packing` says."""
    capacity, too_long = stage.sequence_length, stage.too_long
    rows: Rows
    if stage.packing == "stream":
        rows = SampleStream(sources, capacity=capacity, seed=seed)
    elif stage.packing == "blocks":
        rows = PackedBlocks(sources, capacity=capacity, seed=seed, pad_id=pad_id, too_long=too_long)
    else:
        rows = PackedRows(
            sources,
            capacity=capacity,
            num_rows=num_rows,
            packing=stage.packing,
            seed=seed,
            pad_id=pad_id,
            too_long=too_long,
        )
    return AllLearned(rows, pad_id) if stage.learned == "all" else rows


def mixture_sources(run: RunDirectory, mixture: Mapping[str, float]) -> list[Source]:
    """The shards of each source; one with quality buckets is drawn so that each bucket is seen as often as it asks.

    Raises:
        DataError: A source has no shard.
    """
    prepared = manifest.read(run.shards)
    sources: list[Source] = []
    for name, weight in mixture.items():
        groups = [group for group in manifest.groups(run.shards, prepared, name) if group.epochs > 0]
        seen = sum(group.epochs * group.num_tokens for group in groups)
        for group in groups:
            own = name if group.bucket is None else f"{name}.{group.bucket}"
            share = group.epochs * group.num_tokens / seen
            sources.append(Source(own, TokenShards.open(group.files), weight * share))
    return sources
