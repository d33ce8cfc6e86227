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
from glmcore.rl.episode_record import temperatures, with_branches
from glmcore.rl.logprobs import TokenLogprobs, response_logprobs, shared_response_logprobs
from glmcore.rl.loss import PolicyTokens, policy_loss
from glmcore.rl.routing_replay import mismatch_figures, replacement_figures
from glmcore.rl.shaping import in_loss, shaped_rewards
from glmcore.rl.share import ALONE, Share
from glmcore.rl.trajectory_log import TrajectoryLog
from glmcore.train.optim import Optimizer
from glmcore.trajectory import Sample

TOKENS_PER_MICRO_BATCH = 4_096
"""Most tokens whose activations are in memory at once, but for one sample that is longer."""


class PolicyUpdate:
    """Improves the model on the samples of a step. The same samples give the same weights, bit for bit.

    Args:
        config: Loss, rates and number of optimiser steps.
        model: The policy that is trained.
        optimizer: Of its parameters.
        reference: The policy that a KL term holds on to.
        shown: Keeps trajectories to be looked at.
        share: What this rank computes of every batch, if the model is spread over several.
    """

    def __init__(
        self,
        config: RLConfig,
        model: Glm,
        optimizer: Optimizer,
        reference: Glm | None = None,
        shown: TrajectoryLog | None = None,
        share: Share = ALONE,
    ) -> None:
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.reference = reference
        self.shown = shown
        self.share = share
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
            if config.routing_replay:
                totals = mismatch_figures(
                    usable, lambda some, replay: self._logprobs(self.model, some, replay=replay).logprobs
                )
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
        lengths = response_lengths(samples)
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
        lengths = response_lengths(samples)
        weights = token_weights(lengths * counted, config.aggregation, self.config.max_response_tokens) * counted
        totals: dict[str, float] = {}
        for micro_batch in self.share.micro_batches(list(map(sample_size, samples)), TOKENS_PER_MICRO_BATCH):
            part = micro_batch.index
            chosen = [samples[i] for i in part]
            current = self._logprobs(self.model, chosen)
            own_proximal, own_reference = _take(proximal, part), _take(reference, part)
            tokens = PolicyTokens(
                current.logprobs,
                current.logprobs.detach() if own_proximal is None else torch.cat(own_proximal),
                torch.from_numpy(np.concatenate([sample.logprobs[sample.loss_mask != 0] for sample in chosen])),
                torch.from_numpy(np.concatenate([advantages[i] for i in part])),
                torch.from_numpy(np.repeat(weights[part] * micro_batch.counts, lengths[part]).astype(np.float32)),
                torch.from_numpy(np.repeat(np.arange(len(part)), lengths[part])),
                None if own_reference is None else torch.cat(own_reference),
            )
            result = policy_loss(tokens, config)
            result.loss.backward()
            share = float(lengths[part].sum() / lengths.sum()) * micro_batch.counts
            figures = {
                "entropy": float(current.entropy.mean()),
                "logprob_gap": float((tokens.proximal - tokens.behaviour).abs().mean()),
            } | result.figures()
            if current.replaced is not None:
                figures |= replacement_figures(current.replaced)
            for name, value in figures.items():
                totals[name] = totals.get(name, 0.0) + value * share
            totals["loss"] = totals.get("loss", 0.0) + float(result.loss.detach())
        return self.share.sum(totals)

    @torch.no_grad()
    def _all_logprobs(self, model: Glm, samples: list[Sample]) -> list[Tensor]:
        """Log-probabilities of each sample's response under a model as it is, on every rank."""
        parts: list[Tensor | None] = [None] * len(samples)
        for micro_batch in self.share.micro_batches(list(map(sample_size, samples)), TOKENS_PER_MICRO_BATCH):
            chosen = [samples[i] for i in micro_batch.index]
            told = self._logprobs(model, chosen).logprobs.split(response_lengths(chosen).tolist())
            for place, part in zip(micro_batch.index, told, strict=True):
                parts[place] = part
        return self.share.collect(parts)

    def _logprobs(self, model: Glm, samples: Sequence[Sample], *, replay: bool | None = None) -> TokenLogprobs:
        """What a model says of the responses; the policy, unless told otherwise, with the replay that is asked for."""
        temperature = self.settings.temperature
        if replay is None:
            replay = self.config.routing_replay and model is self.model
        if self.config.mode == "async" and self.config.dynamic_temperature is not None:
            sampled_at = temperatures(samples, temperature)
            if any(other != temperature for other in sampled_at):  # what they have in common is then not the same
                return response_logprobs(model, samples, sampled_at, replay=replay)
        logprobs = shared_response_logprobs if self.config.share_prefixes else response_logprobs
        return logprobs(model, samples, temperature, replay=replay)

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
    lengths = response_lengths(ended)
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
    sampled = np.concatenate([sample.policy_versions[sample.loss_mask != 0] for sample in samples])
    staleness, counts = np.unique(last_version - sampled, return_counts=True)
    return dict(zip(staleness.tolist(), counts.tolist(), strict=True))


def response_lengths(samples: Sequence[Sample]) -> np.ndarray:
    """Tokens of each sample that the policy sampled, int64 [S]."""
    ends = np.cumsum([0, *(len(sample.loss_mask) for sample in samples)])
    sampled = np.cumsum(np.concatenate([np.zeros(1, bool), *(sample.loss_mask != 0 for sample in samples)]))
    return np.diff(sampled[ends])


def sample_size(sample: Sample) -> int:
    """Tokens of a sample, given ones among them."""
    return len(sample.ids)


def _take(parts: list[Tensor] | None, index: np.ndarray) -> list[Tensor] | None:
    return None if parts is None else [parts[i] for i in index]
