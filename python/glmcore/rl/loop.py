"""Synchronous reinforcement learning: sample groups with the newest weights, verify, update, repeat."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glmcore.data.reasoning import Problem
from glmcore.metrics import MetricLog
from glmcore.model.glm import Glm
from glmcore.progress import progress
from glmcore.rl.advantage import group_advantages, has_signal
from glmcore.rl.aggregation import token_weights
from glmcore.rl.config import RLConfig
from glmcore.rl.curriculum.course import Course
from glmcore.rl.evaluation import Evaluator
from glmcore.rl.logprobs import TokenLogprobs, response_logprobs, shared_response_logprobs
from glmcore.rl.loss import PolicyTokens, policy_loss
from glmcore.rl.rollout import Rollout, RolloutWorker, rollout_seed
from glmcore.rl.shaping import in_loss, shaped_rewards
from glmcore.rl.sync import WeightSync
from glmcore.rl.trajectory_log import TrajectoryLog
from glmcore.train.checkpoint import CheckpointStore, Progress
from glmcore.train.loop import peak_memory_gib
from glmcore.train.optim import Optimizer
from glmcore.trajectory import Lease, Sample, TrajectoryBuffer

ROLLOUTS_PER_MICRO_BATCH = 32
"""Rollouts whose logits are in memory at once."""


SampledGroup = tuple[str, list[float]]
"""Task and rewards of a group."""


def checkpoint_name(progress: Progress) -> str:
    """What the buffer calls the checkpoint with this progress."""
    return f"stage {progress.stage_index} step {progress.step}"


class SynchronousLoop:
    """Reinforcement learning in which every rollout comes from the weights that it trains.

    Consumed groups are acknowledged only after a checkpoint that contains their update, so a run that is killed
    finds them in the buffer again and repeats exactly the updates that it lost. The buffer knows beforehand what a
    checkpoint will contain, so a kill right after it repeats nothing.
    """

    def __init__(
        self,
        config: RLConfig,
        model: Glm,
        optimizer: Optimizer,
        worker: RolloutWorker,
        sync: WeightSync,
        buffer: TrajectoryBuffer,
        store: CheckpointStore,
        *,
        course: Course,
        stage_index: int,
        seed: int,
        reference: Glm | None = None,
        evaluator: Evaluator,
        shown: TrajectoryLog | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            config: The RL section of the recipe.
            model: The policy.
            optimizer: Of its weights.
            worker: Samples and judges.
            sync: Brings the policy's weights to the worker's engine.
            buffer: Holds the rollouts.
            store: Of checkpoints.
            course: Tasks and settings of every step.
            stage_index: Position of the stage, for the checkpoints.
            seed: Of the rollouts.
            reference: The policy of a KL term.
            evaluator: Answers held-out tasks when it is time.
            shown: Keeps trajectories to be looked at.
        """
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.worker = worker
        self.sync = sync
        self.buffer = buffer
        self.store = store
        self.course = course
        self.evaluator = evaluator
        self.shown = shown
        self.settings = course.settings(1)
        """How the present step is sampled."""
        self.stage_index = stage_index
        self.seed = seed
        self.reference = reference
        self._unacknowledged: list[Lease] = []

    def run(self, first_step: int, metrics: MetricLog) -> None:
        """Run steps `first_step` to the last, counted from 1.

        Args:
            first_step: First step to run.
            metrics: Receives a record a step.
        """
        config = self.config
        with progress("train rl", total=config.num_steps, unit="steps") as bar:
            bar.skip(first_step - 1)
            for step in range(first_step, config.num_steps + 1):
                started = time.perf_counter()
                synced = self.sync.push(self.model, step - 1)
                self.settings = self.course.settings(step)
                self.evaluator.run_if_due(step - 1, self.settings)
                sampled = self._collect(step)
                lease = self.buffer.take(config.groups_per_step, policy_version=step - 1)
                self._unacknowledged.append(lease)
                samples = lease.samples()
                figures = self._update(samples, step)
                figures |= _sample_figures(samples)
                figures |= self.course.finish_step(step, sampled or _groups(samples), self._held_out_reward)
                seconds = time.perf_counter() - started
                tokens = sum(len(sample.ids) for sample in samples)
                metrics.write(
                    "rl",
                    step,
                    **figures,
                    policy_version=step - 1,
                    tokens=tokens,
                    tokens_per_s=tokens / seconds,
                    seconds=seconds,
                    sync_seconds=synced.seconds,
                    sync_bytes=synced.num_bytes,
                    engine_checksum=synced.checksum,
                    peak_gib=peak_memory_gib(),
                )
                if step % config.checkpoint_every_steps == 0 or step == config.num_steps:
                    metrics.sync()
                    self._save(step)
                bar.advance(1, reward=figures["reward_mean"])
        if config.evaluation is not None:
            self.sync.push(self.model, config.num_steps)
            self.evaluator.run_if_due(config.num_steps, self.settings)

    def _held_out_reward(self, temperature: float) -> float:
        return self.evaluator.held_out_reward(temperature, self.settings.max_response_tokens)

    def _save(self, step: int) -> None:
        progress = Progress(self.stage_index, step)
        self.buffer.prepare(self._unacknowledged, checkpoint_name(progress))
        self.store.save(progress, self.model, self.optimizer, extra={"course": self.course.state_dict()})
        self.store.wait()
        self.buffer.ack(self._unacknowledged, checkpoint_name(progress))
        self._unacknowledged.clear()

    def _collect(self, step: int) -> list[SampledGroup]:
        """Fill the buffer with the groups of a step; gives all that were sampled for it, in order.

        Gives none if an interrupted run has left all of them in the buffer. With dynamic sampling they are sampled
        again, since the buffer does not have those that were dropped.
        """
        config, version = self.config, step - 1
        quota = self.course.quota()
        left = [group for group in self.buffer.groups() if group.policy_version == version]
        first = self.course.tasks.next(config.groups_per_step if quota is None else quota.wanted())
        ready = [group.task for group in left if group.state == "ready"]
        if quota is None and ready == [task.id for task in first]:
            return []
        for group in left:
            self.buffer.discard(group.group_id)
        sampled = self._roll_out(first, step, 0)
        kept = [group for group in sampled if quota is None or quota.offer(_rewards(group))]
        while quota is not None and (more := quota.wanted()):
            extra = self._roll_out(self.course.tasks.next(more), step, len(sampled))
            sampled += extra
            kept += [group for group in extra if quota.offer(_rewards(group))]
        missing = config.groups_per_step - len(kept)
        if missing > 0:  # groups of equal rewards, which have no gradient, keep the batch whole
            kept += [group for group in sampled if not any(group is other for other in kept)][:missing]
        for group in kept:
            self._admit(group, version)
        self.buffer.flush()
        return [(group[0].problem.id, _rewards(group)) for group in sampled]

    def _roll_out(self, tasks: Sequence[Problem], step: int, first_group: int) -> list[list[Rollout]]:
        """A group of rollouts for each task; `first_group` counts the groups of the step before them."""
        size = self.config.rollouts_per_group
        self.worker.temperature = self.settings.temperature
        self.worker.max_tokens = self.settings.max_response_tokens
        rollouts = self.worker.roll_out(
            [task for task in tasks for _ in range(size)],
            [rollout_seed(self.seed, step, first_group + g, r) for g in range(len(tasks)) for r in range(size)],
        )
        return [rollouts[start : start + size] for start in range(0, len(rollouts), size)]

    def _admit(self, group: list[Rollout], version: int) -> None:
        group_id = self.buffer.admit(group[0].problem.id, len(group), version, sync=False)
        for rollout_id, rollout in zip(self.buffer.rollouts(group_id), group, strict=True):
            self._record(rollout_id, rollout, version)

    def _record(self, rollout_id: int, rollout: Rollout, version: int) -> None:
        prompt = np.asarray(rollout.prompt_ids, np.int32)
        answer = np.asarray(rollout.generation.token_ids, np.int32)
        zeros = np.zeros(len(prompt), np.float32)
        self.buffer.append_tokens(rollout_id, prompt, np.zeros(len(prompt), np.uint8), zeros, version)
        logprobs = np.asarray(rollout.generation.logprobs, np.float32)
        self.buffer.append_tokens(rollout_id, answer, np.ones(len(answer), np.uint8), logprobs, version)
        self.buffer.finish(rollout_id, rollout.reward, rollout.generation.finish_reason, sync=False)

    def _update(self, samples: list[Sample], step: int) -> dict[str, float]:
        """Optimise on the samples of a step, group by group share; gives the mean figures of the updates."""
        config = self.config
        advantages, counted = self._judge(samples)
        proximal = None if config.updates_per_step == 1 else self._all_logprobs(self.model, samples)
        reference = None if self.reference is None else self._all_logprobs(self.reference, samples)
        if self.shown is not None and self.shown.is_due(step):
            chosen = self.shown.choose(samples)
            logprobs = self._all_logprobs(self.model, [samples[i] for i in chosen])
            self.shown.record(
                step, step - 1, [samples[i] for i in chosen], advantages[chosen], [part.numpy() for part in logprobs]
            )
        rate = config.learning_rate * min(1.0, step / config.warmup_steps)
        totals: dict[str, float] = {}
        for share in np.array_split(np.arange(len(samples)), config.updates_per_step):
            chosen = [samples[i] for i in share]
            figures = self._accumulate(
                chosen, advantages[share], counted[share], _take(proximal, share), _take(reference, share)
            )
            figures["grad_norm"] = self.optimizer.step(rate)
            for name, value in figures.items():
                totals[name] = totals.get(name, 0.0) + value / config.updates_per_step
        return totals | {"learning_rate": rate}

    def _judge(self, samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
        """Advantage of each sample, and whether it counts in the loss."""
        config = self.config
        lengths = np.array([int(sample.loss_mask.sum()) for sample in samples])
        rewards = np.array([sample.reward for sample in samples])
        rewards = shaped_rewards(rewards, lengths, self.settings.max_response_tokens, config.loss.overlong)
        group_ids = np.array([sample.group_id for sample in samples])
        counted = in_loss([sample.finish_reason for sample in samples], config.loss.overlong)
        counted &= np.array([sample.failed is None for sample in samples])
        if config.loss.drop_uniform_groups or config.dynamic_sampling is not None:
            counted &= has_signal(rewards, group_ids)
        return group_advantages(rewards, group_ids, config.loss.advantage), counted

    def _accumulate(
        self,
        samples: list[Sample],
        advantages: np.ndarray,
        counted: np.ndarray,
        proximal: list[Tensor] | None,
        reference: list[Tensor] | None,
    ) -> dict[str, float]:
        """Add the gradients of one update's samples, a micro-batch at a time."""
        config = self.config.loss
        lengths = np.array([int(sample.loss_mask.sum()) for sample in samples])
        weights = token_weights(lengths * counted, config.aggregation, self.config.max_response_tokens) * counted
        totals: dict[str, float] = {}
        for start in range(0, len(samples), ROLLOUTS_PER_MICRO_BATCH):
            part = slice(start, start + ROLLOUTS_PER_MICRO_BATCH)
            current = self._logprobs(self.model, samples[part])
            tokens = PolicyTokens(
                current.logprobs,
                current.logprobs.detach() if proximal is None else torch.cat(proximal[part]),
                torch.from_numpy(np.concatenate([sample.logprobs[sample.loss_mask != 0] for sample in samples[part]])),
                torch.from_numpy(np.repeat(advantages[part], lengths[part])),
                torch.from_numpy(np.repeat(weights[part], lengths[part]).astype(np.float32)),
                torch.from_numpy(np.repeat(np.arange(len(lengths[part])), lengths[part])),
                None if reference is None else torch.cat(reference[part]),
            )
            result = policy_loss(tokens, config)
            result.loss.backward()
            share = float(lengths[part].sum() / lengths.sum())
            figures = {"entropy": float(current.entropy.mean())} | result.figures()
            for name, value in figures.items():
                totals[name] = totals.get(name, 0.0) + value * share
            totals["loss"] = totals.get("loss", 0.0) + float(result.loss.detach())
        return totals

    @torch.no_grad()
    def _all_logprobs(self, model: Glm, samples: list[Sample]) -> list[Tensor]:
        """Log-probabilities of each sample's response under a model as it is."""
        parts: list[Tensor] = []
        for start in range(0, len(samples), ROLLOUTS_PER_MICRO_BATCH):
            part = samples[start : start + ROLLOUTS_PER_MICRO_BATCH]
            counts = [int(sample.loss_mask.sum()) for sample in part]
            parts += self._logprobs(model, part).logprobs.split(counts)
        return parts

    def _logprobs(self, model: Glm, samples: list[Sample]) -> TokenLogprobs:
        logprobs = shared_response_logprobs if self.config.share_prefixes else response_logprobs
        return logprobs(model, samples, self.settings.temperature)


def _rewards(group: Sequence[Rollout]) -> list[float]:
    return [rollout.reward for rollout in group]


def _groups(samples: Sequence[Sample]) -> list[SampledGroup]:
    """Task and rewards of the groups of samples, in the order of admission."""
    groups: dict[int, SampledGroup] = {}
    for sample in samples:
        groups.setdefault(sample.group_id, (sample.task, []))[1].append(sample.reward)
    return [groups[group_id] for group_id in sorted(groups)]


def _sample_figures(samples: Sequence[Sample]) -> dict[str, float]:
    rewards = np.array([sample.reward for sample in samples])
    lengths = np.array([int(sample.loss_mask.sum()) for sample in samples])
    return {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "response_length_mean": float(lengths.mean()),
        "truncated": float(np.mean([sample.finish_reason == "length" for sample in samples])),
        "uniform_groups": float(1 - has_signal(rewards, np.array([sample.group_id for sample in samples])).mean()),
    }


def _take(parts: list[Tensor] | None, index: np.ndarray) -> list[Tensor] | None:
    return None if parts is None else [parts[i] for i in index]
