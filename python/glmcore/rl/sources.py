"""The source of batches that a recipe asks for."""

import contextlib
import copy
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmcore.engine.engine import Engine
from glmcore.errors import RunError
from glmcore.model.glm import Glm
from glmcore.recipe import Recipe, load_data_recipe
from glmcore.rl.async_engine import LocalSampling
from glmcore.rl.async_scheduler import Follow, RolloutScheduler
from glmcore.rl.async_source import AsynchronousSource
from glmcore.rl.async_tasks import SharedTasks
from glmcore.rl.async_thread import LoopThread
from glmcore.rl.config import RLConfig
from glmcore.rl.curriculum.course import Course
from glmcore.rl.loop import BatchSource
from glmcore.rl.ray_buffer import connect_to
from glmcore.rl.ray_sampling import RaySampling
from glmcore.rl.ray_trainer import Parties
from glmcore.rl.replay import BatchRecord, RecordingSource, ReplaySource
from glmcore.rl.rollout import RolloutWorker
from glmcore.rl.sync import WeightSync
from glmcore.rl.sync_source import SynchronousSource
from glmcore.rl.team import Team
from glmcore.rl.timeline import Timeline
from glmcore.trajectory import TrajectoryBuffer

REPLAYED = (
    "loss",
    "optimizer",
    "learning_rate",
    "warmup_steps",
    "updates_per_step",
    "temperature",
    "share_prefixes",
    "dynamic_sampling",
    "dynamic_temperature",
)
"""What a replay must have in common with the run that it repeats."""


@dataclass(frozen=True)
class Parts:
    """What a source is made of."""

    config: RLConfig
    seed: int
    model: Glm
    worker: RolloutWorker
    """Samples in synchronous mode; asynchronous engines are copies of its engine."""
    course: Course
    directory: Path
    """Where the run keeps what the source needs: `trajectories`, `batches`, `trace.json`."""
    team: Team
    """Gathers the weights for the engines."""
    parties: Parties | None = None
    """The actors of a run on Ray."""


@contextlib.contextmanager
def open_source(
    parts: Parts, version: int, checkpoint: str, state: dict[str, Any]
) -> Generator[tuple[BatchSource, TrajectoryBuffer | None], None, None]:
    """The source of a run and the buffer behind it, if there is one; both are closed afterwards.

    Args:
        parts: Of the run.
        version: Of the model now.
        checkpoint: Name of the checkpoint that the run goes on from.
        state: Of the source, from that checkpoint; empty for none.

    Raises:
        RunError: The run that is to be repeated has no record, or was trained otherwise; or Ray is not installed.
        TrajectoryError: The buffer cannot be opened.
    """
    config = parts.config
    if config.replay is not None:
        _check_replayed(config, Path(config.replay))
        yield ReplaySource(BatchRecord(Path(config.replay) / "batches"), parts.course, config.max_steps), None
        return
    with contextlib.ExitStack() as stack:
        buffer = stack.enter_context(_open_buffer(parts))
        buffer.recover(checkpoint)
        if config.samples_in_turn:
            sync = WeightSync(parts.worker.engine, parts.team.publisher(config))
            source = SynchronousSource(config, parts.model, parts.worker, sync, buffer, parts.course, parts.seed)
            stack.enter_context(contextlib.closing(source))
            record = _record(parts)
            yield (source if record is None else RecordingSource(source, record)), buffer
            return
        source = stack.enter_context(contextlib.closing(_asynchronous(parts, buffer)))
        source.start(version, state.get("scheduler", {}))
        yield source, buffer


@contextlib.contextmanager
def _open_buffer(parts: Parts) -> Generator[TrajectoryBuffer, None, None]:
    """The buffer of a run, in this process, or in an actor that outlives it."""
    if parts.parties is not None:
        buffer = connect_to(parts.parties.buffer)
        yield buffer
        buffer.flush()
        return
    directory = str(parts.directory / "trajectories")
    with TrajectoryBuffer.open(directory, **buffer_options(parts.config)) as buffer:
        yield buffer


def buffer_options(config: RLConfig) -> dict[str, Any]:
    """Of `TrajectoryBuffer.open`, for a run."""
    # Consumed groups stay until the next checkpoint; beside them wait those that may still be trained on in time.
    batches = config.checkpoint_every_steps + 2 + config.max_staleness // config.updates_per_step
    return {
        "capacity": batches * config.groups_per_step * config.rollouts_per_group,
        "max_staleness": config.max_staleness,
        "groups_per_step": config.groups_per_step,
        "updates_per_step": config.updates_per_step,
        "order": config.asynchronous.order,
    }


def _asynchronous(parts: Parts, buffer: TrajectoryBuffer) -> AsynchronousSource:
    config, course = parts.config, parts.course
    course.tasks = SharedTasks(course.tasks)
    thread, timeline = LoopThread("rollouts"), Timeline(parts.directory / "trace.json")
    follow: Follow = lambda _, episode: episode  # noqa: E731 (a type that says so)
    if parts.parties is not None:
        engines, environments = parts.parties.engines, parts.parties.environments
        limits = parts.worker.player.limits
        sampling = player = RaySampling(engines, environments, limits, timeline, config.sync_timeout_s)
    else:
        sampling = _local_sampling(parts, thread, timeline)
        player, follow = sampling.player(parts.worker, timeline), sampling.follow
    scheduler = RolloutScheduler(config, course, player, buffer, parts.seed, follow)
    record = _record(parts)
    sync = WeightSync(sampling, parts.team.publisher(config))
    return AsynchronousSource(config, parts.model, scheduler, thread, sampling, sync, record, timeline)


def _record(parts: Parts) -> BatchRecord | None:
    config = parts.config
    wanted = config.mode == "async" and config.asynchronous.record_rollouts
    return BatchRecord(parts.directory / "batches") if wanted else None


def _local_sampling(parts: Parts, thread: LoopThread, timeline: Timeline) -> LocalSampling:
    config, engine = parts.config, parts.worker.engine
    return LocalSampling(
        Engine(copy.deepcopy(engine.model), engine.stop_token_ids),
        thread,
        timeline,
        in_step=config.max_staleness < config.updates_per_step,
        timeout_s=config.sync_timeout_s,
    )


def _check_replayed(config: RLConfig, directory: Path) -> None:
    file = directory / "recipe.toml"
    if not file.exists():
        raise RunError(f"rl.replay: {directory} holds no run")
    recorded = load_data_recipe([file])
    assert isinstance(recorded, Recipe), "runs of the RL stage have whole recipes"
    for name in REPLAYED:
        if getattr(recorded.rl, name) != getattr(config, name):
            raise RunError(f"rl.replay: {directory} was trained with another rl.{name}")
