"""Synchronous reinforcement learning: sample groups with the newest weights, verify, update, repeat."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glmcore.data.reasoning import Problem
from glmcore.metrics import MetricLog
from glmcore.model.glm import Glm
from glmcore.model.layout import DocumentLayout
from glmcore.model.tree import TreeLayout
from glmcore.prefixes import share_prefixes
from glmcore.progress import progress
from glmcore.ragged import Ragged
from glmcore.rl.advantage import group_advantages
from glmcore.rl.config import RLConfig
from glmcore.rl.loss import policy_loss
from glmcore.rl.rollout import Rollout, RolloutWorker, rollout_seed
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
                    self._save(step)
                bar.advance(1, reward=figures["reward_mean"])

    def _save(self, step: int) -> None:
        progress = Progress(self.stage_index, step)
        self.buffer.prepare(self._unacknowledged, checkpoint_name(progress))
        self.store.save(progress, self.model, self.optimizer)
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
        rewards = np.array([sample.reward for sample in samples])
        group_ids = np.array([sample.group_id for sample in samples])
        advantages = group_advantages(rewards, group_ids, normalize=config.normalize_advantage)
        proximal = None if config.updates_per_step == 1 else self._all_logprobs(samples)
        shares = np.array_split(np.arange(len(samples)), config.updates_per_step)
        rate = config.optimizer.learning_rate * min(1.0, step / config.optimizer.warmup_steps)
        totals: dict[str, float] = {}
        for share in shares:
            figures = self._accumulate([samples[i] for i in share], advantages[share], _take(proximal, share))
            figures["grad_norm"] = self.optimizer.step(rate)
            for name, value in figures.items():
                totals[name] = totals.get(name, 0.0) + value / len(shares)
        return totals | {"learning_rate": rate}

    def _accumulate(
        self, samples: list[Sample], advantages: np.ndarray, proximal: list[Tensor] | None
    ) -> dict[str, float]:
        """Add the gradients of one update's samples, a micro-batch at a time."""
        num_tokens = sum(int(sample.loss_mask.sum()) for sample in samples)
        figures = {"loss": 0.0, "kl_behaviour": 0.0, "clip_fraction": 0.0}
        for start in range(0, len(samples), ROLLOUTS_PER_MICRO_BATCH):
            part = samples[start : start + ROLLOUTS_PER_MICRO_BATCH]
            logprobs = self._logprobs(part)
            counts = [int(sample.loss_mask.sum()) for sample in part]
            result = policy_loss(
                logprobs,
                logprobs.detach() if proximal is None else torch.cat(proximal[start : start + len(part)]),
                torch.from_numpy(np.concatenate([sample.logprobs[sample.loss_mask != 0] for sample in part])),
                torch.from_numpy(np.repeat(advantages[start : start + len(part)], counts)),
                clip_low=self.config.clip_low,
                clip_high=self.config.clip_high,
                importance_cap=self.config.importance_cap,
                num_tokens=num_tokens,
            )
            result.loss.backward()
            weight = sum(counts) / num_tokens
            figures["loss"] += float(result.loss.detach())
            figures["kl_behaviour"] += result.kl_behaviour * weight
            figures["clip_fraction"] += result.clip_fraction * weight
        return figures

    @torch.no_grad()
    def _all_logprobs(self, samples: list[Sample]) -> list[Tensor]:
        """Log-probabilities of each sample's response under the weights before the step's first update."""
        parts: list[Tensor] = []
        for start in range(0, len(samples), ROLLOUTS_PER_MICRO_BATCH):
            part = samples[start : start + ROLLOUTS_PER_MICRO_BATCH]
            counts = [int(sample.loss_mask.sum()) for sample in part]
            parts += self._logprobs(part).split(counts)
        return parts

    def _logprobs(self, samples: list[Sample]) -> Tensor:
        logprobs = shared_response_logprobs if self.config.share_prefixes else response_logprobs
        return logprobs(self.model, samples, self.config.temperature)


def response_logprobs(model: Glm, samples: Sequence[Sample], temperature: float) -> Tensor:
    """Log-probability of every token with `loss_mask` set, sample after sample, float32 [N]."""
    lengths = [len(sample.ids) for sample in samples]
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    ids = torch.from_numpy(np.concatenate([sample.ids for sample in samples]).astype(np.int64))
    positions = torch.cat([torch.arange(length) for length in lengths])
    output = model(ids, positions, DocumentLayout.from_cu_seqlens(cu_seqlens))
    mask = np.concatenate([sample.loss_mask for sample in samples]) != 0
    place = torch.from_numpy(np.flatnonzero(mask))  # never a document's first token: prompts are not empty
    logprobs = (model.logits(output.hidden[place - 1]) / temperature).log_softmax(-1)
    return logprobs.gather(1, ids[place, None]).squeeze(1)


def shared_response_logprobs(model: Glm, samples: Sequence[Sample], temperature: float) -> Tensor:
    """The same from one forest of the samples, in which a prompt is there once for all its rollouts."""
    offsets = np.concatenate(([0], np.cumsum([len(sample.ids) for sample in samples]))).astype(np.int64)
    forest = share_prefixes(Ragged(np.concatenate([sample.ids for sample in samples]), offsets))
    layout = TreeLayout.from_forest(forest)
    ids = torch.from_numpy(forest.input_ids.astype(np.int64))
    output = model(ids, torch.from_numpy(forest.position_ids.astype(np.int64)), layout)
    mask = np.concatenate([sample.loss_mask for sample in samples]) != 0
    token, of_sample = np.unique(forest.place[mask], return_inverse=True)
    place = torch.from_numpy(token.astype(np.int64))  # never a first token: prompts are not empty
    logprobs = (model.logits(output.hidden[layout.parent[place]]) / temperature).log_softmax(-1)
    return logprobs.gather(1, ids[place, None]).squeeze(1)[torch.from_numpy(of_sample)]


def _sample_figures(samples: Sequence[Sample]) -> dict[str, float]:
    rewards = np.array([sample.reward for sample in samples])
    logprobs = np.concatenate([sample.logprobs[sample.loss_mask != 0] for sample in samples])
    return {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "response_length_mean": len(logprobs) / len(samples),
        "entropy": float(-logprobs.mean()),  # the sampled estimate
    }


def _take(parts: list[Tensor] | None, index: np.ndarray) -> list[Tensor] | None:
    return None if parts is None else [parts[i] for i in index]
