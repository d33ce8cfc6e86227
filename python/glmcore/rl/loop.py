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
from glmcore.rl.logprobs import TokenLogprobs, response_logprobs, shared_response_logprobs
from glmcore.rl.loss import PolicyTokens, policy_loss
from glmcore.rl.rollout import Rollout, RolloutWorker, rollout_seed
from glmcore.rl.shaping import in_loss, shaped_rewards
from glmcore.rl.sync import WeightSync
from glmcore.train.checkpoint import CheckpointStore, Progress
from glmcore.train.loop import peak_memory_gib
from glmcore.train.optim import Optimizer
from glmcore.trajectory import Lease, Sample, TrajectoryBuffer

ROLLOUTS_PER_MICRO_BATCH = 32
"""Rollouts whose logits are in memory at once."""


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
        stage_index: int,
        seed: int,
        reference: Glm | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.worker = worker
        self.sync = sync
        self.buffer = buffer
        self.store = store
        self.stage_index = stage_index
        self.seed = seed
        self.reference = reference
        self._unacknowledged: list[Lease] = []

    def run(self, problems: Sequence[Problem], first_step: int, metrics: MetricLog) -> None:
        """Run steps `first_step` to the last, counted from 1.

        Args:
            problems: Problems of all steps, `groups_per_step` each.
            first_step: First step to run.
            metrics: Receives a record a step.
        """
        config = self.config
        with progress("train rl", total=config.num_steps, unit="steps") as bar:
            bar.skip(first_step - 1)
            for step in range(first_step, config.num_steps + 1):
                started = time.perf_counter()
                synced = self.sync.push(self.model, step - 1)
                groups = slice((step - 1) * config.groups_per_step, step * config.groups_per_step)
                self._collect(problems[groups], step)
                lease = self.buffer.take(config.groups_per_step, policy_version=step - 1)
                self._unacknowledged.append(lease)
                samples = lease.samples()
                figures = self._update(samples, step)
                figures |= _sample_figures(samples)
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

    def _save(self, step: int) -> None:
        progress = Progress(self.stage_index, step)
        self.buffer.prepare(self._unacknowledged, checkpoint_name(progress))
        self.store.save(progress, self.model, self.optimizer)
        self.store.wait()
        self.buffer.ack(self._unacknowledged, checkpoint_name(progress))
        self._unacknowledged.clear()

    def _collect(self, problems: Sequence[Problem], step: int) -> None:
        """Fill the buffer with the groups of a step, unless an interrupted run has left all of them there."""
        config, version = self.config, step - 1
        left = [group for group in self.buffer.groups() if group.policy_version == version]
        if len(left) == len(problems) and all(group.state == "ready" for group in left):
            return
        for group in left:
            self.buffer.discard(group.group_id)
        size = config.rollouts_per_group
        group_ids = [self.buffer.admit(problem.id, size, version, sync=False) for problem in problems]
        rollouts = self.worker.roll_out(
            [problem for problem in problems for _ in range(size)],
            [rollout_seed(self.seed, step, g, r) for g in range(len(problems)) for r in range(size)],
        )
        rollout_ids = [rid for group_id in group_ids for rid in self.buffer.rollouts(group_id)]
        for rollout_id, rollout in zip(rollout_ids, rollouts, strict=True):
            self._record(rollout_id, rollout, version)
        self.buffer.flush()

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
        rewards = shaped_rewards(rewards, lengths, config.max_response_tokens, config.loss.overlong)
        group_ids = np.array([sample.group_id for sample in samples])
        counted = in_loss([sample.finish_reason for sample in samples], config.loss.overlong)
        counted &= np.array([sample.failed is None for sample in samples])
        if config.loss.drop_uniform_groups:
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
        return logprobs(model, samples, self.config.temperature)


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
