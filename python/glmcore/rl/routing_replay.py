"""Routing replay: the trainer sends every token to the experts that the engine chose for it while it sampled.

Trainer and engine compute the same policy with other rounding, the engine in FP8 with other weights too, and where two
experts are nearly equal that decides between them: the token then takes another way through the model. With replay it
takes the same. Source: rollout routing replay (arXiv:2510.11370); slime's `rollout_routed_experts`.

Shapes: N tokens of all samples, T tokens of a forward pass, L decoder layers with experts, K experts per token.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from glmcore.errors import RunError
from glmcore.model.glm import Glm, Output
from glmcore.model.replay import UNKNOWN
from glmcore.rl.episode_record import EpisodeRecord
from glmcore.rl.expert_trace import Experts
from glmcore.trajectory import Sample

COMPARED_ROLLOUTS = 8
"""Rollouts of a step that are also computed with the trainer's own choices, to see what replay is good for."""


def recorded_experts(model: Glm, samples: Sequence[Sample]) -> list[Experts]:
    """What the engine recorded of each sample.

    Raises:
        RunError: It recorded nothing, or what does not fit the model.
    """
    config = model.config
    layers = sum(number < config.num_hidden_layers for number in model.moe_layer_numbers)
    found: list[Experts] = []
    for sample in samples:
        experts = EpisodeRecord.from_bytes(sample.extra).experts
        if experts is None:
            raise RunError(
                f"rollout {sample.rollout_id} has no record of its experts: rl.routing_replay needs the engine of "
                "glmcore with record_experts=true; HTTP engines do not give any"
            )
        fits = experts.shape[1:] == (layers, config.num_experts_per_tok)
        if not fits or (experts.size and int(experts.max()) >= config.n_routed_experts):
            raise RunError(
                f"rollout {sample.rollout_id} records {experts.shape[2]} of up to {int(experts.max(initial=0))} in "
                f"{experts.shape[1]} layers, the model chooses {config.num_experts_per_tok} of "
                f"{config.n_routed_experts} experts in {layers}"
            )
        found.append(experts[: len(sample.ids)])
    return found


def lay_out(experts: Sequence[Experts], lengths: Sequence[int], place: np.ndarray, num_tokens: int) -> Tensor:
    """What `Glm.forward` takes as `experts`.

    Args:
        experts: Of each sample, of its first tokens.
        lengths: Tokens of each sample, summing to N.
        place: Where each token of the samples stands in the forward pass, int [N]. Where several share a place, the
            first that has a record decides.
        num_tokens: Of the forward pass, T.

    Returns:
        int32 [T, L, K], `UNKNOWN` in rows without a record.
    """
    chosen = np.full((num_tokens, *experts[0].shape[1:]), UNKNOWN, np.int32)
    starts = np.cumsum(lengths) - lengths
    for start, told in zip(starts[::-1].tolist(), reversed(experts), strict=True):
        chosen[place[start : start + len(told)]] = told
    return torch.from_numpy(chosen)


def replaced_choices(output: Output, experts: Tensor) -> Tensor:
    """Where replay has replaced the trainer's own choice: of the tokens with a record, in each layer, bool [., L]."""
    known = experts[:, 0, 0] != UNKNOWN
    replaced = [routing.replaced[known] for routing in output.routings if routing.replaced is not None]
    return torch.stack(replaced, 1)


def replacement_figures(replaced: Tensor) -> dict[str, float]:
    """Share of the choices that replay replaced, and of the tokens that it did so for in any layer."""
    if not replaced.numel():
        return {}
    return {
        "routing_replaced": float(replaced.float().mean()),
        "routing_replaced_tokens": float(replaced.any(1).float().mean()),
    }


@torch.no_grad()
def mismatch_figures(
    samples: Sequence[Sample], logprobs: Callable[[Sequence[Sample], bool], Tensor]
) -> dict[str, float]:
    """Estimates of KL(engine || trainer) in nats per token, on some of the samples, with replay and without it.

    Args:
        samples: Of a step.
        logprobs: Log-probabilities of the sampled tokens of some samples under the trainer's policy, with replay or
            with the router's own choices.
    """
    chosen = samples[:: max(1, len(samples) // COMPARED_ROLLOUTS)][:COMPARED_ROLLOUTS]
    drawn = torch.from_numpy(np.concatenate([sample.logprobs[sample.loss_mask != 0] for sample in chosen]))
    figures: dict[str, float] = {}
    for name, replay in (("kl_replayed_routing", True), ("kl_own_routing", False)):
        log_ratio = logprobs(chosen, replay) - drawn
        figures[name] = float((log_ratio.exp() - 1 - log_ratio).mean())  # k3, as `kl_behaviour`
    return figures
