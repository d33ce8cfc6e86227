"""The rows of a recipe's stages: what is trained on, and what is held out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from glmcore.data import manifest
from glmcore.data.block_starts import RememberedBlocks
from glmcore.data.blocks import PackedBlocks
from glmcore.data.config import HELD_OUT, USER
from glmcore.data.learned import AllLearned
from glmcore.data.loader import PackedRows, Source
from glmcore.data.prefetch import Rows
from glmcore.data.samples import SampleStream
from glmcore.data.shards import TokenShards
from glmcore.recipe import Recipe
from glmcore.rundir import RunDirectory
from glmcore.train.config import StageConfig
from glmcore.train.schedule import TrainPlan
from glmcore.train.validation import Validation


def stage_rows(run: RunDirectory, stage_index: int, *, pad_id: int, first_step: int, writes: bool) -> Rows:
    """The packed rows of a stage, in order; a pure function of recipe and shards.

    Args:
        run: The run.
        stage_index: Position of the stage in its recipe.
        pad_id: Id behind the last document of a row.
        first_step: Step of the stage from which rows are asked for, counted from 1.
        writes: Whether this process writes down where blocks begin.

    Raises:
        DataError: A source of the mixture has no shard.
    """
    recipe = run.recipe
    stage = recipe.train.stages[stage_index]
    seed = recipe.run.seed * 1000 + stage_index
    sources, steps = mixture_sources(run, _mixture(recipe, stage)), TrainPlan(recipe.train).stages[stage_index]
    starts = BlockStarts(run.path / f"blocks-{stage.name}.jsonl", steps.step(first_step).rows.start, writes)
    return packed_rows(stage, sources, num_rows=steps.num_rows, seed=seed, pad_id=pad_id, starts=starts)


def _mixture(recipe: Recipe, stage: StageConfig) -> dict[str, float]:
    """A stage's mixture, a user's own text in it."""
    corpus = recipe.corpus
    if stage.kind == "pretrain" and corpus is not None and corpus.path is not None and corpus.user_weight:
        return {**stage.mixture, USER: corpus.user_weight}
    return stage.mixture


def stage_validation(run: RunDirectory, stage_index: int, pad_id: int) -> Validation | None:
    """Held-out rows of each source of a stage that has any; None without validation."""
    config, stage = run.recipe.train.validation, run.recipe.train.stages[stage_index]
    if config is None:
        return None
    prepared = manifest.read(run.shards)
    names = _mixture(run.recipe, stage)
    groups = [group for name in names for group in manifest.groups(run.shards, prepared, name)]
    held_out = [
        Source(group.source, TokenShards.open(group.files), 1.0)
        for group in groups
        if group.bucket == HELD_OUT and group.num_tokens
    ]
    return Validation.of(config, stage, held_out, pad_id)


@dataclass(frozen=True)
class BlockStarts:
    """What `RememberedBlocks` takes."""

    file: Path
    first_row: int
    writes: bool


def packed_rows(
    stage: StageConfig,
    sources: Sequence[Source],
    *,
    num_rows: int,
    seed: int,
    pad_id: int,
    starts: BlockStarts | None = None,
) -> Rows:
    """Rows of a stage as its `packing` says.

    Args:
        stage: The stage.
        sources: Its mixture.
        num_rows: Rows that it needs.
        seed: Decides the order.
        pad_id: Id behind the last document of a row.
        starts: Where it is written down where blocks begin, if it is.
    """
    capacity, too_long = stage.sequence_length, stage.too_long
    rows: Rows
    if stage.packing == "stream":
        rows = SampleStream(sources, capacity=capacity, seed=seed)
    elif stage.packing == "blocks":
        make = partial(PackedBlocks, sources, capacity=capacity, seed=seed, pad_id=pad_id, too_long=too_long)
        if starts is None:
            rows = make()
        else:
            rows = RememberedBlocks(
                lambda start: make(start=start), starts.file, starts.first_row, writes=starts.writes
            )
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
