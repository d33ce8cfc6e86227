"""One update of the policy: samples in, optimiser steps, figures out."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glmcore.model.glm import Glm
from glmcore.rl.advantage import has_signal
from glmcore.rl.aggregation import token_weights
from glmcore.rl.config import RLConfig
from glmcore.rl.credit import episode_credit, group_teaches, turn_credit
from glmcore.rl.curriculum.course import StepSettings
from glmcore.rl.episode_record import with_branches
from glmcore.rl.logprobs import TokenLogprobs, response_logprobs, shared_response_logprobs
from glmcore.rl.loss import PolicyTokens, policy_loss
from glmcore.rl.shaping import in_loss, shaped_rewards
from glmcore.rl.trajectory_log import TrajectoryLog
from glmcore.train.optim import Optimizer
from glmcore.trajectory import Sample

ROLLOUTS_PER_MICRO_BATCH = 32
"""Rollouts whose logits are in memory at once."""


class PolicyUpdate:
    """Improves the model on the samples of a step. The same samples give the same weights, bit for bit.

    Args:
        config: Loss, rates and number of optimiser steps.
        model: The policy that is trained.
        optimizer: Of its parameters.
        reference: The policy that a KL term holds on to.
        shown: Keeps trajectories to be looked at.
    """

    def __init__(
        self,
        config: RLConfig,
        model: Glm,
        optimizer: Optimizer,
        reference: Glm | None = None,
        shown: TrajectoryLog | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.reference = reference
        self.shown = shown
        self.settings = StepSettings(config.temperature, config.max_response_tokens)
        """Of the present step."""

    def run(self, samples: Sequence[Sample], step: int, version: int, settings: StepSettings) -> dict[str, float]:
        """Make `updates_per_step` optimiser steps, each on its share of the groups; gives the means of their figures.

        Failed rollouts are left out; if none is left the weights stay as they are.

        Args:
            samples: Whole groups.
            step: Counted from 1.
            version: Of the weights now.
            settings: That the samples were drawn with.
        """
        config, self.settings = self.config, settings
        rate = config.learning_rate * min(1.0, step / config.warmup_steps)
        usable = [sample for sample in with_branches(samples) if sample.failed is None and sample.loss_mask.any()]
        totals: dict[str, float] = {}
        if usable:
            advantages, counted = self._judge(usable)
            proximal = None if config.updates_per_step == 1 else self._all_logprobs(self.model, usable)
            reference = None if self.reference is None else self._all_logprobs(self.reference, usable)
            self._show(step, version, usable, advantages)
            for share in np.array_split(np.arange(len(usable)), config.updates_per_step):
                if not len(share):
                    continue
                chosen = [usable[i] for i in share]
                figures = self._accumulate(
                    chosen,
                    [advantages[i] for i in share],
                    counted[share],
                    _take(proximal, share),
                    _take(reference, share),
                )
                figures["grad_norm"] = self.optimizer.step(rate)
                for name, value in figures.items():
                    totals[name] = totals.get(name, 0.0) + value / config.updates_per_step
        return totals | {"learning_rate": rate}

    def _judge(self, samples: list[Sample]) -> tuple[list[np.ndarray], np.ndarray]:
        """Advantage of each sampled token of each sample, and whether the sample counts in the loss."""
        config = self.config
        lengths = np.array([int(sample.loss_mask.sum()) for sample in samples])
        rewards = np.array([sample.reward for sample in samples])
        rewards = shaped_rewards(rewards, lengths, self.settings.max_response_tokens, config.loss.overlong)
        counted = in_loss([sample.finish_reason for sample in samples], config.loss.overlong)
        if config.loss.credit == "turn":
            advantages = turn_credit(samples, rewards, config.loss.advantage, config.loss.turn_discount)
        else:
            advantages = episode_credit(samples, rewards, config.loss.advantage)
        if config.loss.drop_uniform_groups or config.dynamic_sampling is not None:
            counted &= group_teaches(samples, advantages)
        return advantages, counted

    def _accumulate(
        self,
        samples: list[Sample],
        advantages: list[np.ndarray],
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
                torch.from_numpy(np.concatenate(advantages[part])),
                torch.from_numpy(np.repeat(weights[part], lengths[part]).astype(np.float32)),
                torch.from_numpy(np.repeat(np.arange(len(lengths[part])), lengths[part])),
                None if reference is None else torch.cat(reference[part]),
            )
            result = policy_loss(tokens, config)
            result.loss.backward()
            share = float(lengths[part].sum() / lengths.sum())
            figures = {
                "entropy": float(current.entropy.mean()),
                "logprob_gap": float((tokens.proximal - tokens.behaviour).abs().mean()),
            } | result.figures()
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

    def _show(self, step: int, version: int, samples: list[Sample], advantages: list[np.ndarray]) -> None:
        if self.shown is not None and self.shown.is_due(step):
            chosen = self.shown.choose(samples)
            kept = [samples[i] for i in chosen]
            logprobs = [part.numpy() for part in self._all_logprobs(self.model, kept)]
            means = np.array([advantages[i].mean() for i in chosen])
            self.shown.record(step, version, kept, means, logprobs)


def sample_figures(samples: Sequence[Sample]) -> dict[str, float]:
    """Means over the rollouts of a step; over those that did not fail, but for the share of failed ones."""
    ended = [sample for sample in samples if sample.failed is None]
    figures = {"failed": 1 - len(ended) / len(samples)}
    if not ended:
        return {"reward_mean": 0.0, **figures}
    rewards = np.array([sample.reward for sample in ended])
    lengths = np.array([int(sample.loss_mask.sum()) for sample in ended])
    return {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "response_length_mean": float(lengths.mean()),
        "truncated": float(np.mean([sample.finish_reason == "length" for sample in ended])),
        "uniform_groups": float(1 - has_signal(rewards, np.array([sample.group_id for sample in ended])).mean()),
        **figures,
    }


def staleness_histogram(samples: Sequence[Sample], last_version: int) -> dict[int, int]:
    """Tokens that the policy sampled, by their staleness in the optimiser step that makes `last_version + 1`."""
    counts: dict[int, int] = {}
    for sample in samples:
        versions = sample.policy_versions[sample.loss_mask != 0]
        for staleness, count in zip(*np.unique(last_version - versions, return_counts=True), strict=True):
            counts[int(staleness)] = counts.get(int(staleness), 0) + int(count)
    return dict(sorted(counts.items()))


def _take(parts: list[Tensor] | None, index: np.ndarray) -> list[Tensor] | None:
    return None if parts is None else [parts[i] for i in index]
