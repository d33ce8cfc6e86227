"""The policy-gradient loss of an update, token by token.

Shapes: N response tokens of a micro-batch, S answers. Log-probabilities are of three policies: the *behaviour* policy
drew a token (the engine, quantised, perhaps some versions ago), the *proximal* policy is the trainer's at the beginning
of the step, the *current* policy is being differentiated. Ratios between the last two are clipped, the step from the
first to the second is corrected by a weight: decoupled PPO, AReaL (arXiv:2505.24298), section 4.2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from glmcore.rl.config import ImportanceConfig, LossConfig


@dataclass(frozen=True)
class PolicyTokens:
    """Response tokens of whole answers, one after the other."""

    current: Tensor
    """Log-probabilities, differentiable, float32 or wider [N]."""
    proximal: Tensor
    """[N]."""
    behaviour: Tensor
    """[N]."""
    advantages: Tensor
    """Of each token's answer, [N]."""
    weights: Tensor
    """Share of each token in the update's loss, [N]: `glmcore.rl.aggregation.token_weights`."""
    answer: Tensor
    """Number of each token's answer, rising from 0, int64 [N]."""
    reference: Tensor | None = None
    """Log-probabilities of the policy that a KL term holds on to, [N]."""


@dataclass(frozen=True)
class PolicyLoss:
    """The loss and what to watch."""

    loss: Tensor
    """Scalar, differentiable: this micro-batch's part of the update's loss."""
    clip_fraction: float
    """Share of tokens whose ratio the clip holds back."""
    kl_behaviour: float
    """Estimate of KL(behaviour || proximal) in nats per token, how far the sampling copy is from the trainer."""
    correction_fraction: float
    """Share of tokens whose importance weight is truncated or masked."""
    kl_reference: float | None
    """Estimate of the KL term in nats per token; None without one."""

    def figures(self) -> dict[str, float]:
        """Means over the micro-batch's tokens, for the record."""
        figures = {
            "clip_fraction": self.clip_fraction,
            "kl_behaviour": self.kl_behaviour,
            "correction_fraction": self.correction_fraction,
        }
        return figures if self.kl_reference is None else figures | {"kl_reference": self.kl_reference}


def policy_loss(tokens: PolicyTokens, config: LossConfig) -> PolicyLoss:
    """Weighted sum over tokens of the objective that `config` names, times the importance weight, and the KL term."""
    log_weight = (tokens.proximal - tokens.behaviour).detach()
    correction, changed = importance_weight(log_weight, config.importance)
    if config.objective == "cispo":
        losses, held_back = _cispo(tokens, config)
    else:
        losses, held_back = _clipped(tokens, config)
    loss = (tokens.weights * correction * losses).sum()
    kl_reference = None
    if config.kl != "none":
        if tokens.reference is None:
            raise ValueError("a KL term needs the reference policy's log-probabilities")
        kl = kl_estimate(tokens.current, tokens.reference, config.kl)
        loss = loss + config.kl_weight * (tokens.weights * kl).sum()
        kl_reference = float(kl.detach().mean())
    return PolicyLoss(
        loss,
        clip_fraction=float(held_back.float().mean()),
        # at tokens of the behaviour policy: k3 of KL(behaviour || proximal)
        kl_behaviour=float((log_weight.exp() - 1 - log_weight).mean()),
        correction_fraction=float(changed.float().mean()),
        kl_reference=kl_reference,
    )


def importance_weight(log_weight: Tensor, config: ImportanceConfig) -> tuple[Tensor, Tensor]:
    """Weight of each token, and which of them the bounds change.

    `truncated` clamps the ratio to `[low, cap]`, as slime does (`tis_clip_low`, `tis_clip`); `masked` leaves out the
    tokens outside of it, as IcePop does.

    Args:
        log_weight: Log of proximal over behaviour probability, [N].
        config: Kind and bounds.

    Returns:
        Weights [N], and bool [N].
    """
    if config.kind == "none":
        return torch.ones_like(log_weight), torch.zeros_like(log_weight, dtype=torch.bool)
    ratio = log_weight.exp()
    outside = (ratio < config.low) | (ratio > config.cap)
    bounded = ratio.clamp(config.low, config.cap) if config.kind == "truncated" else ratio.masked_fill(outside, 0.0)
    return bounded, outside


def kl_estimate(current: Tensor, reference: Tensor, kind: str) -> Tensor:
    """Estimate of KL(current || reference) from each token, [N], differentiable.

    With x = log current - log reference: `k1` x, unbiased and of either sign; `k2` x^2 / 2, whose gradient is that of
    the KL itself; `k3` exp(-x) - 1 + x, unbiased and never negative. Source: Schulman, Approximating KL divergence
    (2020); k3 is GRPO's (arXiv:2402.03300), equation 4.
    """
    x = current - reference
    if kind == "k1":
        return x
    return x.square() / 2 if kind == "k2" else (-x).exp() - 1 + x


def _clipped(tokens: PolicyTokens, config: LossConfig) -> tuple[Tensor, Tensor]:
    """`-min(r A, clip(r) A)` of each token, and where the clip decides.

    The ratio r is the token's own (PPO, arXiv:1707.06347, equation 7; the two bounds apart as in DAPO,
    arXiv:2503.14476, section 3.1) or with `gspo` the geometric mean of its answer's (GSPO-token, arXiv:2507.18071,
    equation 14), whose gradient every token of the answer carries. With `dual_clip` c, negative advantages gain at
    least c A (arXiv:1912.09729, equation 5).
    """
    log_ratio = tokens.current - tokens.proximal
    if config.objective == "gspo":
        log_ratio = answer_mean(log_ratio, tokens.answer).detach() + tokens.current - tokens.current.detach()
    ratio, advantages = log_ratio.exp(), tokens.advantages
    gain = ratio * advantages
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * advantages
    least = torch.minimum(gain, clipped)
    held_back = clipped < gain
    if config.dual_clip is not None:
        floor = config.dual_clip * advantages
        stopped = (advantages < 0) & (least < floor)
        least, held_back = torch.where(stopped, floor, least), held_back | stopped
    return -least, held_back


def _cispo(tokens: PolicyTokens, config: LossConfig) -> tuple[Tensor, Tensor]:
    """`-sg(clip(r)) A log p` of each token: the clip bounds a token's weight and never silences it.

    Source: MiniMax-M1 (arXiv:2506.13585), equations 4 and 5.
    """
    ratio = (tokens.current - tokens.proximal).detach().exp()
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    return -clipped * tokens.advantages * tokens.current, clipped != ratio


def answer_mean(values: Tensor, answer: Tensor) -> Tensor:
    """The mean over each token's answer, [N]."""
    num_answers = int(answer[-1]) + 1 if len(answer) else 0
    total = values.new_zeros(num_answers).index_add(0, answer, values)
    return (total / torch.bincount(answer, minlength=num_answers))[answer]
