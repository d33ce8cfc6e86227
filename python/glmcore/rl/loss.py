"""The clipped policy-gradient loss over tokens.

Shapes: N response tokens of all rollouts of an update.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """The loss and what to watch."""

    loss: Tensor
    """Scalar, differentiable."""
    clip_fraction: float
    """Share of tokens whose ratio the clip holds back."""
    kl_behaviour: float
    """Estimate of KL(behaviour || proximal) in nats per token, how far the sampling copy is from the trainer."""


def policy_loss(
    logprobs: Tensor,
    proximal_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    importance_cap: float,
    num_tokens: int,
) -> PolicyLoss:
    """Token-wise clipped loss `-w * min(r A, clip(r, 1 - low, 1 + high) A)`, every token of the batch alike.

    `r` is the current over the proximal probability (the trainer's own at the start of the step), `w` the proximal
    over the behaviour probability (the quantised copy that sampled), clamped to `[0, importance_cap]`.
    No KL term. Source: PPO (arXiv:1707.06347), eq. 7; truncated importance sampling as in slime; token-wise mean as
    in the GLM-4.5 report (arXiv:2508.06471), section 3.2.

    Args:
        logprobs: Current log-probabilities, differentiable, float32 [N].
        proximal_logprobs: float32 [N].
        rollout_logprobs: float32 [N].
        advantages: Advantage of each token's rollout, float32 [N].
        clip_low: Lower clip, in (0, 1).
        clip_high: Upper clip.
        importance_cap: Largest weight.
        num_tokens: Denominator of the mean: response tokens of the whole update.
    """
    ratio = (logprobs - proximal_logprobs).exp()
    gain = ratio * advantages
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    log_weight = proximal_logprobs - rollout_logprobs
    weight = log_weight.exp().clamp(0, importance_cap)
    loss = -(weight * torch.minimum(gain, clipped)).sum() / num_tokens
    with torch.no_grad():
        # k3 estimator of KL(behaviour || proximal) from samples of the behaviour policy: exp(x) - 1 - x >= 0.
        kl = (log_weight.exp() - 1 - log_weight).mean()
        held_back = (clipped < gain).float().mean()
    return PolicyLoss(loss, float(held_back), float(kl))
