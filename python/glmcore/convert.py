"""Checkpoints from one form into another: those of a run, and Hugging Face directories in bfloat16 or block-FP8."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import tomli_w
import torch
from torch import Tensor

from glmcore.durable import atomic_directory, resumable_directory, write_file
from glmcore.errors import CheckpointError, ConfigError
from glmcore.fp8 import dequantize_checkpoint, quantize_checkpoint, verify_checkpoint
from glmcore.fp8.checkpoint import CHECKSUMS, read_json
from glmcore.fp8.layout import published_views, read_quantization
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.weights import hf_views, write_checkpoint
from glmcore.progress import progress as show_progress
from glmcore.recipe import Recipe
from glmcore.rundir import RunDirectory
from glmcore.tokenizer import Tokenizer
from glmcore.train.checkpoint import CheckpointStore, Progress, StoredWeights
from glmcore.train.manifest import NAME as MANIFEST
from glmcore.train.manifest import Manifest
from glmcore.train.optim import Optimizer
from glmcore.train.schedule import TrainPlan
from glmcore.train.stages import model_config

Form = Literal["bf16", "fp8", "run"]


def convert(
    source: Path,
    target: Path,
    to: Form,
    *,
    recipe: Recipe | None = None,
    stage: str | None = None,
    num_threads: int | None = None,
    progress: bool = True,
) -> None:
    """Write a checkpoint in another form; the target appears whole or not at all.

    What comes out of a run, and goes into FP8 or back, is streamed: one tensor, or one a thread, is in memory. Repeated
    after a kill, it goes on behind the last whole file. Weights go into a run and out of it again without a changed
    bit, and the codes of an FP8 checkpoint stay what they are through bfloat16.

    Args:
        source: A run directory (its newest whole checkpoint is taken), one checkpoint of a run, or a Hugging Face
            directory; compared with its checksums where it has some.
        target: Directory to make.
        to: `bf16` and `fp8` are Hugging Face directories with tokenizer, chat template and generation_config.json;
            `run` is a run directory that goes on from these weights with a fresh optimiser.
        recipe: What the run is to follow, for `run` alone; its model and tokenizer become the checkpoint's.
        stage: The stage that the run is to begin with, `rl` for what comes after training; None for the first one.
        num_threads: Tensors at a time where weights are quantised or the other way round; None for all cores.
        progress: Show a progress bar.

    Raises:
        CheckpointError: The source is damaged, no checkpoint, or in that form already; or the target exists.
        ConfigError: There is no recipe for a run, or one that does not fit; or a recipe and no run.
        TokenizerError: The source has no tokenizer that can be read.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists already")
    if (recipe is None) != (to != "run"):
        raise ConfigError("a run needs a recipe to follow, and nothing else does: give --recipe with --to run")
    if _run_of(source) is not None:
        if to == "run":
            raise CheckpointError(f"{source} is a run's already")
        _from_run(source, target, to, progress)
        return
    form = _check(source)
    if to == "run":
        assert recipe is not None  # by the second check
        _to_run(source, target, recipe, stage)
    elif form == to:
        raise CheckpointError(f"{source} is {to} already")
    elif to == "fp8":
        quantize_checkpoint(source, target, progress=progress, num_threads=num_threads)
    else:
        dequantize_checkpoint(source, target, progress, num_threads=num_threads)


def _check(source: Path) -> Form:
    """The form of a Hugging Face directory that is what was written."""
    if not source.is_dir():
        raise CheckpointError(f"{source} is no directory")
    quantization = read_quantization(read_json(source / "config.json"))
    GlmConfig.from_hf(source / "config.json")
    if (source / CHECKSUMS).exists():
        verify_checkpoint(source)
    return "bf16" if quantization is None else "fp8"


def _run_of(source: Path) -> Path | None:
    """The run directory that `source` is or is a checkpoint of."""
    if (source / MANIFEST).is_file():
        source = source.absolute().parent.parent
    return source if (source / "recipe.toml").is_file() else None


def _from_run(source: Path, target: Path, to: Form, progress: bool) -> None:
    directory = _run_of(source)
    assert directory is not None  # by the caller
    run = RunDirectory(directory, Recipe.load([directory / "recipe.toml"]), writes=False)
    path, place = _checkpoint_of(run, source)
    stages = run.recipe.train.stages
    config = model_config(run).model_copy(
        update={"rope_theta": stages[min(place.stage_index, len(stages) - 1)].rope_theta}
    )
    with torch.device("meta"):
        model = Glm(config).to(torch.bfloat16)
        for router in model.routers:
            router.e_score_correction_bias = router.e_score_correction_bias.float()
    state = model.state_dict()
    weights = StoredWeights(path, state)
    task = {"task": "convert", "to": to, "source": str(path.absolute()), "files": weights.manifest.digests()}
    layout = hf_views(state)
    try:
        with (
            resumable_directory(target, task) as temporary,
            show_progress(f"convert to {to}", unit="tensors", total=len(layout), shown=progress) as bar,
        ):
            _write_companions(run.tokenizer, config, temporary)
            read = _one_by_one(state, weights)

            def counted(name: str) -> Tensor:
                bar.advance(1)
                return read(name)

            write_checkpoint(temporary, config, layout, counted, fp8=to == "fp8")
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}") from None


def _checkpoint_of(run: RunDirectory, source: Path) -> tuple[Path, Progress]:
    if (source / MANIFEST).is_file():
        return source, Progress(**Manifest.read(source).progress)
    found = CheckpointStore(run.checkpoints, run.recipe.train.checkpoint).latest()
    if found is None:
        raise CheckpointError(f"{run.path} has no checkpoint yet: run `glmcore train` first")
    return found.path, found.progress


def _one_by_one(state: Mapping[str, Tensor], weights: StoredWeights) -> Callable[[str], Tensor]:
    """Reads tensors by their published names; those of one stack of experts share a single reading."""
    owner = {published: name for name, tensor in state.items() for published, _ in published_views(name, tensor)}
    held: dict[str, Tensor] = {}

    def read(published: str) -> Tensor:
        if published not in held:
            held.clear()
            name = owner[published]
            tensor = torch.empty_like(state[name], device="cpu")
            weights.read_into({name: tensor})
            held.update(published_views(name, tensor))
        return held[published]

    return read


def _write_companions(tokenizer: Path, config: GlmConfig, target: Path) -> None:
    """Tokenizer, chat template and generation_config.json: what a model needs beside its weights."""
    for file in sorted(tokenizer.iterdir()):
        shutil.copyfile(file, target / file.name)
    generation = target / "generation_config.json"
    if not generation.exists():
        ends = {"_from_model_config": True, "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
        write_file(generation, json.dumps(ends, indent=2) + "\n")


def _to_run(source: Path, target: Path, recipe: Recipe, stage: str | None) -> None:
    started = time.perf_counter()
    tokenizer = Tokenizer.from_pretrained(source)
    config = GlmConfig.from_hf(source / "config.json")
    adapted = Recipe.model_validate(
        {
            **recipe.model_dump(),
            "model": config.model_dump(),
            "run": {
                **recipe.run.model_dump(),
                "dir": str(target),
                "num_threads": recipe.run.num_threads or os.cpu_count() or 1,
            },
            "tokenizer": {**recipe.tokenizer.model_dump(), "path": str((target / "tokenizer").absolute())},
        }
    )
    place = _place_before(adapted, stage)
    rope_theta = adapted.train.stages[min(place.stage_index, len(adapted.train.stages) - 1)].rope_theta
    if rope_theta != config.rope_theta:
        raise ConfigError(
            f"train.stages has rope_theta={rope_theta:g} where the run begins, the checkpoint {config.rope_theta:g}: "
            f"set it to the checkpoint's"
        )
    with _new_run(target, adapted, tokenizer, source) as run:
        if model_config(run) != config:
            raise ConfigError(
                f"{source}: eos_token_id {config.eos_token_id} and pad_token_id {config.pad_token_id} of config.json "
                f"are not those of the tokenizer's <|endoftext|>, <|user|> and <|observation|>"
            )
        model = Glm.from_pretrained(source, dtype=torch.float32)
        store = CheckpointStore(run.checkpoints, adapted.train.checkpoint)
        store.save(place, model, Optimizer(model, adapted.train.optimizer))
        store.wait()
        run.record_station("converted", time.perf_counter() - started, note=f"from {source}")


def _place_before(recipe: Recipe, stage: str | None) -> Progress:
    """Where a run stands that is to go on with a stage."""
    names = [told.name for told in recipe.train.stages]
    if stage is None or stage == names[0]:
        return Progress(0, 0)
    if stage not in (*names, "rl"):
        raise ConfigError(f"no stage {stage!r}: the recipe has {', '.join(names)} and rl")
    before = (len(names) if stage == "rl" else names.index(stage)) - 1
    return Progress(before, TrainPlan(recipe.train).stages[before].num_steps)


@contextmanager
def _new_run(target: Path, recipe: Recipe, tokenizer: Tokenizer, source: Path) -> Iterator[RunDirectory]:
    """A run directory that gets its name when the block ends well."""
    try:
        with atomic_directory(target) as temporary:
            run = RunDirectory(temporary, recipe)
            write_file(temporary / "recipe.toml", tomli_w.dumps(recipe.model_dump(exclude_none=True)))
            tokenizer.save(run.tokenizer)
            for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
                if (source / name).is_file():
                    shutil.copyfile(source / name, run.tokenizer / name)
            yield run
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}") from None
