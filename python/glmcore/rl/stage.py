"""The RL stage of a recipe: evaluate, improve, evaluate again."""

import contextlib
import copy
import functools
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from glmcore.data.prepare import prepare
from glmcore.engine.engine import Engine
from glmcore.envs.registry import list_tasks, open_family
from glmcore.errors import ConfigError, RunError
from glmcore.metrics import MetricLog
from glmcore.model.glm import Glm
from glmcore.model.parallel.ranks import Ranks
from glmcore.progress import say
from glmcore.recipe import Recipe
from glmcore.rl.checkpointing import LoopCheckpoints, checkpoint_name
from glmcore.rl.curriculum.course import Course, StepSettings
from glmcore.rl.evaluate import RewardEstimate, evaluate
from glmcore.rl.evaluation import Evaluator
from glmcore.rl.loop import Loop
from glmcore.rl.pool import task_source
from glmcore.rl.ray_cluster import Cluster
from glmcore.rl.ray_engine import EngineSetup
from glmcore.rl.ray_environment import EnvironmentSetup
from glmcore.rl.ray_supervisor import BufferSetup, Samplers, Supervisor
from glmcore.rl.ray_trainer import Parties
from glmcore.rl.reference import reference_policy
from glmcore.rl.rollout import Rollout, RolloutWorker
from glmcore.rl.sources import Parts, buffer_options, open_source
from glmcore.rl.sync import WeightSync
from glmcore.rl.team import Team
from glmcore.rl.trajectory_log import TrajectoryLog
from glmcore.rundir import RunDirectory, open_run
from glmcore.tokenizer import Tokenizer
from glmcore.train.checkpoint import CheckpointStore, Progress, load_weights
from glmcore.train.optim import Optimizer
from glmcore.train.schedule import TrainPlan
from glmcore.train.stages import configure_torch, model_config, new_model, open_run_together, train_stages

SHOWN_SAMPLES = 6
"""Transcripts kept of each evaluation."""


def run(recipe: Recipe) -> None:
    """Run the RL stage of `recipe`, and before it what is left of data and training stages.

    Goes on where an earlier call stopped.

    Raises:
        RunError: The run directory is in use or belongs to another recipe.
        DataError: A source cannot be read.
        CheckpointError: All checkpoints are damaged, or one cannot be written.
    """
    if recipe.rl.backend == "ray":
        run_on_ray(recipe)
        return
    with open_run(recipe) as directory:
        prepare(directory)
        train_stages(directory)
        reinforce(directory)


def run_on_ray(recipe: Recipe) -> None:
    """Run the RL stage on a Ray cluster; training stages before it are the job of the trainer's ranks too.

    Raises:
        ConfigError: The ranks cannot train together so.
        RunError: Ray is not installed, the cluster has no room, or parties of the run have died too often.
        GlmcoreError: What a rank has raised; see `run`.
    """
    check_ranks(recipe)
    config, num_ranks = recipe.rl, recipe.parallel.num_ranks
    with open_run(recipe) as directory:
        prepare(directory)
        samplers = None
        if config.mode == "async" and config.replay is None:
            model, last = model_config(directory), recipe.train.stages[-1]
            limits = config.environment.limits.within(model.max_position_embeddings)
            device = "cuda" if config.ray.engine_gpus else "cpu"
            samplers = Samplers(
                EngineSetup(model, last.rope_theta, config.ray.engine_cpus, config.engine, device),
                EnvironmentSetup(str(directory.tokenizer.absolute()), config.environment, config.tasks, limits),
            )
        buffer = BufferSetup(str((directory.path / "trajectories").absolute()), buffer_options(config))
    num_cpus = config.ray.num_cpus(num_ranks, samples=samplers is not None)
    with (
        Cluster(config.ray.address, num_cpus),
        contextlib.closing(Supervisor(config.ray, buffer, samplers)) as supervisor,
    ):
        supervisor.run(functools.partial(_run_rank, _with_absolute_directory(recipe)), num_ranks)


def check_ranks(recipe: Recipe) -> None:
    """Whether a recipe's ranks can do reinforcement learning together.

    Raises:
        ConfigError: They cannot.
    """
    parallel = recipe.parallel
    for name in ("tensor", "context", "pipeline"):
        if parallel.size(name) > 1:
            raise ConfigError(
                f"ranks of reinforcement learning share out samples and weights: parallel.{name}={parallel.size(name)} "
                "must be 1, use parallel.data, replicas and expert"
            )
    if parallel.num_ranks > 1 and recipe.rl.loss.kl != "none":
        raise ConfigError("rl.loss.kl needs the whole reference policy on one rank: set parallel.data=1, or kl='none'")


def _run_rank(recipe: Recipe, parties: Parties) -> None:
    """What each rank of a trainer on Ray does."""
    ranks = Ranks.of_recipe(recipe)
    with open_run_together(recipe, ranks) as directory:
        train_stages(directory, ranks=ranks)
        reinforce(directory, ranks, parties)


def _with_absolute_directory(recipe: Recipe) -> Recipe:
    """Actors have a working directory of their own."""
    run = recipe.run.model_copy(update={"dir": str(Path(recipe.run.dir).absolute())})
    return recipe.model_copy(update={"run": run})


def reinforce(run: RunDirectory, ranks: Ranks | None = None, parties: Parties | None = None) -> None:
    """Run what is left of the RL stage.

    Args:
        run: Its training stages are finished.
        ranks: The processes that train together, all of which call; None for this one.
        parties: Who works with them on Ray.
    """
    configure_torch(run.recipe)
    recipe, config, team = run.recipe, run.recipe.rl, Team(ranks)
    model, progress = load_policy(run, ranks)
    optimizer = Optimizer(model, config.optimizer)
    stage_index = len(recipe.train.stages)
    store = team.store(run.checkpoints, recipe.train.checkpoint)
    found = store.latest()
    if progress.stage_index == stage_index and found:
        store.load(found, model, optimizer)
    first_step = progress.step + 1 if progress.stage_index == stage_index else 1
    reference = None if config.loss.kl == "none" else reference_policy(run, model)
    update = team.update(config, model, optimizer, TrajectoryLog(run.shown, config.trajectory_log), reference=reference)
    if not team.is_first:
        team.follow(update, store)
        return

    state = found.extra if found is not None and progress.stage_index == stage_index else {}
    with new_worker(run, model, with_weights=ranks is None) as worker:
        sync = WeightSync(worker.engine, team.publisher(config))
        course = Course(config, task_source(recipe, run.probe))
        if state:
            course.load_state_dict(state["course"])
        if "before" not in run.stations().get("rl", {}):
            _evaluate(run, worker, sync, model, "before", version=0)
        metrics = MetricLog(run.metrics, run.tensorboard if recipe.train.tensorboard else None)
        metrics.truncate_after("rl", first_step - 1)
        version = (first_step - 1) * config.updates_per_step
        parts = Parts(config, recipe.run.seed, model, worker, course, run.path, team, parties)
        with open_source(parts, version, checkpoint_name(progress), state) as (source, buffer):
            loop = Loop(
                config,
                source,
                update,
                LoopCheckpoints(store, model, optimizer, stage_index, buffer),
                course,
                _Examination(run, worker, sync, model),
            )
            loop.run(first_step, metrics)
        metrics.close()
        if "after" not in run.stations()["rl"]:
            _evaluate(run, worker, sync, model, "after", version=config.max_steps * config.updates_per_step)
    if "seconds" not in run.stations()["rl"]:
        _record_seconds(run, metrics)
    team.announce("end")


def rewards(run: RunDirectory) -> tuple[RewardEstimate, RewardEstimate]:
    """The held-out reward before and after a finished RL stage."""
    found = run.stations()["rl"]
    return RewardEstimate(**found["before"]), RewardEstimate(**found["after"])


def load_policy(run: RunDirectory, ranks: Ranks | None = None) -> tuple[Glm, Progress]:
    """The newest weights of a run whose training stages are finished, and how far the run is.

    Args:
        run: The run.
        ranks: Who shares out the model, all of which call; None for this process.

    Raises:
        RunError: Training is not finished.
    """
    stages = run.recipe.train.stages
    found = CheckpointStore(run.checkpoints, run.recipe.train.checkpoint).latest()
    if found is None or found.progress < Progress(len(stages) - 1, TrainPlan(run.recipe.train).stages[-1].num_steps):
        raise RunError(f"the training stages of {run.path} are not finished: run `glmcore train` first")
    model = new_model(run, ranks)
    load_weights(found.path, model)
    model.rope_theta = stages[-1].rope_theta
    return model, found.progress


class _Examination:
    """The suites of a recipe, answered by the worker's engine."""

    def __init__(self, run: RunDirectory, worker: RolloutWorker, sync: WeightSync, model: Glm) -> None:
        self._evaluator = Evaluator(run.recipe, run.evaluations, worker)
        self._engine = worker.engine
        self._config = run.recipe.rl
        self._sync = sync
        self._model = model

    def run_if_due(self, finished_steps: int, settings: StepSettings) -> None:
        if self._evaluator.is_due(finished_steps):
            self._sync.push(self._model, finished_steps * self._config.updates_per_step)
            self._evaluator.run_if_due(finished_steps, settings)

    def held_out_reward(self, temperature: float, settings: StepSettings, version: int) -> float:
        if self._engine.policy_version != version:
            self._sync.push(self._model, version)
        return self._evaluator.held_out_reward(temperature, settings.max_response_tokens)


@contextlib.contextmanager
def new_worker(run: RunDirectory, model: Glm, *, with_weights: bool = True) -> Generator[RolloutWorker, None, None]:
    """An engine with a copy of the model's weights, and what it needs to answer tasks; closed afterwards.

    Args:
        run: Its recipe and tokenizer.
        model: The policy.
        with_weights: False leaves the weights to the first update, where `model` is a rank's part.

    Raises:
        ConfigError: The environment is not installed.
    """
    config = run.recipe.rl
    held = copy.deepcopy(model) if with_weights else _empty_copy(model)
    engine = Engine(held, model.config.eos_token_id, config=config.engine)
    with contextlib.closing(open_family(config.environment, config.tasks)) as family:
        yield RolloutWorker(
            engine,
            Tokenizer.from_pretrained(str(run.tokenizer)),
            family.new,
            max_tokens=config.max_response_tokens,
            temperature=config.temperature,
            limits=config.environment.limits,
            thinking=config.environment.thinking,
        )


def _empty_copy(model: Glm) -> Glm:
    with torch.device("meta"):
        copied = Glm(model.config)
    copied.rope_theta = model.rope_theta
    return copied.to_empty(device="cpu")


def _evaluate(
    run: RunDirectory, worker: RolloutWorker, sync: WeightSync, model: Glm, moment: str, version: int
) -> None:
    """Record the held-out reward of the current weights, as the engine holds them, and some transcripts."""
    started = time.perf_counter()
    sync.push(model, version)
    config = run.recipe.rl
    worker.temperature, worker.max_tokens = config.temperature, config.max_response_tokens
    tasks = _held_out_problems(run.recipe)
    estimate, rollouts = evaluate(worker, tasks, run.recipe.run.seed, f"evaluate {moment} rl")
    say(f"mean reward on held-out problems {moment} RL: {estimate}")
    record = run.stations().get("rl", {})
    record |= {moment: estimate.to_dict(), f"{moment}_seconds": time.perf_counter() - started}
    run.record_samples(f"{moment} rl", [transcript(rollout) for rollout in rollouts[:SHOWN_SAMPLES]])
    run.record(rl=record | {"tasks": config.tasks})


def _record_seconds(run: RunDirectory, metrics: MetricLog) -> None:
    steps = [record for record in metrics.read() if record["stage"] == "rl"]
    rewards = run.stations()["rl"]
    seconds = sum(record["seconds"] for record in steps)
    tokens = sum(record["tokens"] for record in steps)
    run.record_station("rl", seconds, tokens=tokens, note=f"{len(steps)} steps")
    evaluation = rewards["before_seconds"] + rewards["after_seconds"]
    run.record_station("evaluation", evaluation, note="held-out problems, before and after RL")
    run.record(rl=rewards | {"seconds": seconds})


def transcript(rollout: Rollout) -> dict[str, object]:
    """What people want to see of a rollout."""
    asked = [said for said in rollout.ending.messages if said["role"] == "user"]
    return {
        "question": asked[0]["content"] if asked else rollout.problem.id,
        "reply": rollout.reply,
        "answer": getattr(rollout.problem, "answer", ""),
        "reward": rollout.reward,
    }


def _held_out_problems(recipe: Recipe) -> list[Any]:
    config = recipe.rl
    return list_tasks(config.environment, config.tasks, "held_out", config.evaluation_problems, recipe.run.seed)
