"""A whole run of reinforcement learning on the digit task, resumable like those of the command."""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from digit_copy import ANSWER_TOKENS, LATENCIES, DigitFamily, digit_tasks, prepared_model, tiny_config, tiny_tokenizer
from torch.distributed.tensor import DTensor, distribute_tensor

from glmcore.engine.engine import Engine
from glmcore.envs.config import EpisodeLimits
from glmcore.metrics import MetricLog
from glmcore.model.glm import Glm
from glmcore.model.parallel.apply import parallelize
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.ranks import Ranks
from glmcore.rl.checkpointing import LoopCheckpoints, checkpoint_name
from glmcore.rl.config import RLConfig
from glmcore.rl.curriculum.course import Course
from glmcore.rl.loop import Examination, Loop
from glmcore.rl.ray_cluster import Cluster
from glmcore.rl.ray_engine import EngineSetup
from glmcore.rl.ray_environment import EnvironmentSetup
from glmcore.rl.ray_supervisor import BufferSetup, Samplers, Supervisor
from glmcore.rl.ray_trainer import Parties
from glmcore.rl.rollout import RolloutWorker
from glmcore.rl.sources import Parts, buffer_options, open_source
from glmcore.rl.tasks import FixedOrder, TaskSource
from glmcore.rl.team import Team
from glmcore.rl.trajectory_log import TrajectoryLog
from glmcore.train.checkpoint import Progress
from glmcore.train.config import CheckpointConfig
from glmcore.train.optim import Optimizer

NUM_TASKS = 4096


def digit_config(**fields: Any) -> RLConfig:
    """Eight groups of eight rollouts of eight tokens."""
    usual: dict[str, Any] = {
        "tasks": ["digits"],
        "max_steps": 100,
        "groups_per_step": 8,
        "rollouts_per_group": 8,
        "max_response_tokens": ANSWER_TOKENS,
        "checkpoint_every_steps": 1_000,
        "learning_rate": 3e-3,
        "share_prefixes": True,
        "trajectory_log": {"groups": 0},
        "optimizer": {"matrices": "adamw", "adam_betas": [0.9, 0.99], "weight_decay": 0.0},
    }
    return RLConfig.from_dict(usual | fields, "digits")


def train_digits(
    directory: Path,
    config: RLConfig,
    *,
    family: Any,
    weights: dict[str, torch.Tensor] | None = None,
    seed: int = 0,
    limits: EpisodeLimits = EpisodeLimits(),  # noqa: B008 (frozen)
    tasks: TaskSource | None = None,
    on_start: Callable[[], None] = lambda: None,
    after_step: Callable[[int], None] = lambda _: None,
    examination: Examination | None = None,
) -> Glm:
    """Train, or go on with, the run in a directory; gives the model after the last step.

    Args:
        directory: Of the run; made if it is not there.
        config: Of the stage.
        family: Makes the environments.
        weights: What to begin with; None for those of `prepared_model`.
        seed: Of the rollouts.
        limits: Of an episode.
        tasks: Where they come from; None for all of them in turn.
        on_start: Called when everything is loaded.
        after_step: Called after every step.
        examination: Held-out tasks.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if config.backend == "ray":
        raise ValueError("on Ray train_digits_on_ray trains")
    return _train(directory, config, family, weights, seed, limits, tasks, on_start, after_step, examination)


def train_digits_on_ray(
    directory: Path,
    config: RLConfig,
    weights: dict[str, torch.Tensor],
    *,
    ranks: int = 1,
    latency: str = "none",
    factory: str = "digit_copy:digit_family",
    options: dict[str, Any] | None = None,
    limits: EpisodeLimits = EpisodeLimits(),  # noqa: B008 (frozen)
    on_start: Callable[[dict[str, list[Any]]], None] = lambda _: None,
) -> None:
    """Train, or go on with, the run in a directory with all its parties in actors; see `glmcore.rl.stage.run_on_ray`.

    Args:
        directory: Of the run.
        config: Of the stage, with `backend = "ray"`.
        weights: What to begin with.
        ranks: Of the trainer.
        latency: Of the environments.
        factory: Makes the environments' family, in the actors.
        options: For it.
        limits: Of an episode.
        on_start: Called with the actors of the parties whenever a trainer has been started.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(directory / "tokenizer"))
    torch.save(weights, directory / "weights.pt")
    options = {"latency": latency} | (options or {})
    environment = {"name": "custom", "factory": factory, "options": options, "thinking": False}
    config = RLConfig.from_dict(config.model_dump() | {"environment": environment}, "digits")
    samplers = None
    if config.mode == "async" and config.replay is None:
        model = tiny_config(tokenizer)
        samplers = Samplers(
            EngineSetup(model, model.rope_theta, config.ray.engine_cpus),
            EnvironmentSetup(
                str(directory / "tokenizer"),
                config.environment,
                config.tasks,
                limits.within(model.max_position_embeddings),
            ),
        )
    buffer = BufferSetup(str(directory / "trajectories"), buffer_options(config))
    num_cpus = config.ray.num_cpus(ranks, samples=samplers is not None)
    with (
        Cluster(config.ray.address, num_cpus),
        contextlib.closing(Supervisor(config.ray, buffer, samplers, on_start)) as supervisor,
    ):
        supervisor.run(partial(_train_rank, directory, config, latency, limits), ranks)


def _train_rank(directory: Path, config: RLConfig, latency: str, limits: EpisodeLimits, parties: Parties) -> None:
    """What each rank of a trainer on Ray does."""
    torch.set_num_threads(1)
    ranks = Ranks(ParallelConfig(data=int(os.environ["WORLD_SIZE"])))
    weights = torch.load(directory / "weights.pt", weights_only=True)
    family = DigitFamily(LATENCIES[latency])
    _train(directory, config, family, weights, 0, limits, None, lambda: None, lambda _: None, None, ranks, parties)


def _train(
    directory: Path,
    config: RLConfig,
    family: Any,
    weights: dict[str, torch.Tensor] | None,
    seed: int,
    limits: EpisodeLimits,
    tasks: TaskSource | None,
    on_start: Callable[[], None],
    after_step: Callable[[int], None],
    examination: Examination | None,
    ranks: Ranks | None = None,
    parties: Parties | None = None,
) -> Glm:
    tokenizer, team = tiny_tokenizer(), Team(ranks)
    whole = prepared_model(tokenizer, steps=0 if weights else 60)
    if weights:
        whole.load_state_dict(weights)
    model = _spread(whole, ranks)
    engine = Engine(Glm(whole.config), whole.config.eos_token_id)
    optimizer = Optimizer(model, config.optimizer)
    store = team.store(directory / "checkpoints", CheckpointConfig(every_steps=1))
    found = store.latest()
    # After all that draws random numbers, whose state is part of the checkpoint.
    if found is not None:
        store.load(found, model, optimizer)
    progress = Progress(0, 0) if found is None else found.progress
    state = {} if found is None else found.extra
    update = team.update(config, model, optimizer, TrajectoryLog(directory / "shown", config.trajectory_log))
    if not team.is_first:
        team.follow(update, store)
        return model
    course = Course(config, tasks or FixedOrder(digit_tasks(NUM_TASKS)))  # pyright: ignore[reportArgumentType]: items are tasks
    if state:
        course.load_state_dict(state["course"])
    worker = RolloutWorker(
        engine,
        tokenizer,
        family.new,
        max_tokens=config.max_response_tokens,
        temperature=config.temperature,
        limits=limits,
        thinking=False,
    )
    parts = Parts(config, seed, model, worker, course, directory, team, parties)
    metrics = MetricLog(directory / "metrics.jsonl")
    metrics.truncate_after("rl", progress.step)
    version = progress.step * config.updates_per_step
    on_start()
    with open_source(parts, version, checkpoint_name(progress), state) as (source, buffer):
        checkpoints = LoopCheckpoints(store, model, optimizer, 0, buffer)
        loop = Loop(config, source, update, checkpoints, course, examination, after_step)
        loop.run(progress.step + 1, metrics)
    metrics.close()
    team.announce("end")
    return model


def _spread(whole: Glm, ranks: Ranks | None) -> Glm:
    """The model on its ranks, each with its part of the weights."""
    if ranks is None or ranks.config.num_ranks == 1:
        return whole
    with torch.device("meta"):
        model = Glm(whole.config)
    model = parallelize(model, ranks).to_empty(device="cpu")
    weights = whole.state_dict()
    with torch.no_grad():
        for name, part in model.state_dict().items():
            full = weights[name]
            if isinstance(part, DTensor):
                full = distribute_tensor(full, part.device_mesh, part.placements)
            part.copy_(full)
    model.rope_theta = whole.rope_theta
    return model


__all__ = ["DigitFamily", "digit_config", "train_digits", "train_digits_on_ray"]
