"""A whole run of reinforcement learning on the digit task, resumable like those of the command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from digit_copy import ANSWER_TOKENS, DigitFamily, digit_tasks, prepared_model, tiny_tokenizer

from glmcore.engine.engine import Engine
from glmcore.envs.config import EpisodeLimits
from glmcore.metrics import MetricLog
from glmcore.model.glm import Glm
from glmcore.rl.checkpointing import LoopCheckpoints, checkpoint_name
from glmcore.rl.config import RLConfig
from glmcore.rl.curriculum.course import Course
from glmcore.rl.loop import Loop
from glmcore.rl.rollout import RolloutWorker
from glmcore.rl.sources import Parts, open_source
from glmcore.rl.tasks import FixedOrder, TaskSource
from glmcore.rl.update import PolicyUpdate
from glmcore.train.checkpoint import CheckpointStore, Progress
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
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    model = prepared_model(tokenizer, steps=0 if weights else 60)
    if weights:
        model.load_state_dict(weights)
    engine = Engine(Glm(model.config), model.config.eos_token_id, config=config.engine)
    optimizer = Optimizer(model, config.optimizer)
    store = CheckpointStore(directory / "checkpoints", CheckpointConfig(every_steps=1))
    found = store.latest()
    # After all that draws random numbers, whose state is part of the checkpoint.
    if found is not None:
        store.load(found, model, optimizer)
    progress = Progress(0, 0) if found is None else found.progress
    state = {} if found is None else found.extra
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
    tokenizer.save(str(directory / "tokenizer"))
    parts = Parts(config, seed, model, worker, course, directory / "tokenizer", directory)
    metrics = MetricLog(directory / "metrics.jsonl")
    metrics.truncate_after("rl", progress.step)
    version = progress.step * config.updates_per_step
    on_start()
    with open_source(parts, version, checkpoint_name(progress), state) as (source, buffer):
        checkpoints = LoopCheckpoints(store, model, optimizer, 0, buffer)
        loop = Loop(config, source, PolicyUpdate(config, model, optimizer), checkpoints, course, after_step=after_step)
        loop.run(progress.step + 1, metrics)
    metrics.close()
    return model


__all__ = ["DigitFamily", "digit_config", "train_digits"]
