"""Mixture-of-experts feed-forward layer.

Shapes: T tokens, D hidden size, E routed experts, K experts per token, M expert width, R = T * K routed rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from glmcore.model.blocks import outside_graphs
from glmcore.model.config import GlmConfig
from glmcore.model.parallel.context import ContextLayout, sum_over_ranks
from glmcore.model.replay import replay_choice
from glmcore.model.routing import combine, dispatch
from glmcore.model.swiglu import swiglu


class Mlp(nn.Module):
    """SwiGLU feed-forward layer: `down(silu(gate(x)) * up(x))`, without biases."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


@dataclass(frozen=True)
class Routing:
    """The experts chosen for each token."""

    expert: Tensor
    """int64 [T, K]."""
    weight: Tensor
    """Mixing weights, float32 or wider [T, K]."""
    scores: Tensor
    """Sigmoid scores of all experts, without the correction bias, float32 or wider [T, E]."""
    replaced: Tensor | None = None
    """Tokens whose replayed experts are not those that they would have chosen, bool [T]; None without replay."""


class Router(nn.Module):
    """Choose K of E experts for each token by sigmoid score.

    The correction bias steers the choice and never the mixing weights, so balancing the load adds no gradient.
    Source: DeepSeek-V3 report (arXiv:2412.19437), section 2.1.2; transformers modeling_glm4_moe.py.
    """

    e_score_correction_bias: Tensor  # [E], float32

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.num_groups = config.n_group
        self.top_groups = config.topk_group
        self.normalise = config.norm_topk_prob
        self.scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))

    def forward(self, x: Tensor, recorded: Tensor | None = None) -> Routing:
        """Route `x` [T, D]. All arithmetic is in float32 or wider: rounding would swap experts.

        Args:
            x: Hidden states.
            recorded: Experts to use instead of the own choice, int [T, K]: see `glmcore.model.replay`.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        scores = F.linear(x.to(wide), self.weight.to(wide)).sigmoid()  # [T, E]
        choice = self._within_best_groups(scores.detach() + self.e_score_correction_bias)
        expert = choice.topk(self.top_k, sorted=False).indices  # [T, K]
        replaced = None
        if recorded is not None:
            expert, replaced = replay_choice(expert, recorded)
        weight = scores.gather(1, expert)
        if self.normalise:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        return Routing(expert, weight * self.scale, scores, replaced)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As for every module, but the bias stays in float32: in bfloat16 its steps of 0.001 would be lost."""
        super()._apply(fn, recurse)
        bias = self.e_score_correction_bias
        if bias.dtype in (torch.bfloat16, torch.float16):
            self.e_score_correction_bias = bias.float()
        return self

    def _within_best_groups(self, choice: Tensor) -> Tensor:
        """Put experts outside a token's best groups out of reach; a group scores the sum of its two best."""
        if self.num_groups == 1:
            return choice
        grouped = choice.unflatten(-1, (self.num_groups, -1))  # [T, groups, E / groups]
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.top_groups, sorted=False).indices
        outside = torch.ones(grouped.shape[:-1], dtype=torch.bool, device=choice.device).scatter(1, best, False)
        return grouped.masked_fill(outside[..., None], float("-inf")).flatten(1)


class Experts(nn.Module):
    """E SwiGLU experts as two stacks of matrices.

    `gate_up_proj` [E, 2M, D] holds the gate rows first, then the up rows; `down_proj` is [E, D, M].
    """

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        count, hidden, width = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, width))

    def forward(self, rows: Tensor, ends: Tensor) -> Tensor:
        """Apply expert e to rows `ends[e - 1]` up to `ends[e]` of `rows` [R, D]; `ends` is int32 [E]."""
        return apply_experts(rows, ends, self.gate_up_proj, self.down_proj)


def apply_experts(rows: Tensor, ends: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """`Experts.forward` with weights [E, 2M, D] and [E, D, M]."""
    gate, up = grouped_linear(rows, gate_up_proj, ends).chunk(2, dim=-1)
    return grouped_linear(swiglu(gate, up), down_proj, ends)


def grouped_linear(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply each group of `rows` [R, I] with its own matrix of `weight` [E, O, I]; gives [R, O].

    One grouped product where PyTorch has a kernel (float32 and bfloat16), one batched product otherwise.
    """
    if rows.dtype in (torch.float32, torch.bfloat16):
        return F.grouped_mm(rows, weight.transpose(-2, -1), offs=ends)
    return batched_linear(rows, weight, ends)


@outside_graphs
def batched_linear(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The same as a batch of products, groups padded to the longest."""
    sizes = ends.diff(prepend=ends.new_zeros(1)).long()
    longest = int(sizes.max()) if len(rows) else 0
    first_slot = torch.arange(len(weight), device=rows.device) * longest - (ends - sizes)
    slot = torch.arange(len(rows), device=rows.device) + torch.repeat_interleave(first_slot, sizes)
    padded = rows.new_zeros(len(weight) * longest, rows.shape[1]).index_copy(0, slot, rows)
    return (padded.unflatten(0, (len(weight), longest)) @ weight.mT).flatten(0, 1).index_select(0, slot)


class MixtureOfExperts(nn.Module):
    """Routed experts plus a shared expert that sees every token."""

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.num_experts = config.n_routed_experts
        self.top_k = config.num_experts_per_tok
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = Mlp(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x: Tensor, recorded: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Mix the chosen experts of each token of `x` [T, D], or those that were recorded; also gives the routing."""
        routing = self.gate(x, recorded)
        expert, order = routing.expert.flatten().sort(stable=True)  # [R]
        each = torch.arange(self.num_experts, device=x.device)
        ends = torch.searchsorted(expert, each, right=True).to(torch.int32)
        place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=x.device))
        place = place.view_as(routing.expert)  # [T, K]
        token = order // self.top_k

        rows = self.experts(dispatch(x, token, place), ends)  # [R, D], in the order of the experts
        return self.shared_experts(x) + combine(rows, routing.weight, token, place), routing


def expert_load(routing: Routing) -> Tensor:
    """Number of tokens that each expert computed, int64 [E]: those that chose it, or were made to by replay."""
    return torch.bincount(routing.expert.flatten(), minlength=routing.scores.shape[1])


@dataclass(frozen=True)
class RouterFigures:
    """How evenly the routers of L layers loaded their experts."""

    share: Tensor
    """Share of the routed tokens of each expert, float32 [L, E]; rows sum to 1, or are 0 without tokens."""
    max_violation: Tensor
    """By how much the fullest expert exceeds the mean load, as a part of the mean: 0 when even, float32 [L].
    Source: loss-free balancing (arXiv:2408.15664), section 4.1."""
    num_dead: Tensor
    """Experts that no token chose, int64 [L]."""


def router_figures(loads: Tensor) -> RouterFigures:
    """Figures of a step from its loads.

    Args:
        loads: Tokens of each expert and layer, summed over the micro-batches (and ranks) of the step, int [L, E]: the
            stacked `expert_load` of `Output.routings`.
    """
    share = loads / loads.sum(-1, keepdim=True).clamp(min=1)
    violation = (share.amax(-1) * loads.shape[-1] - 1).clamp(min=0)
    return RouterFigures(share, violation, (loads == 0).sum(-1))


def sequence_balance_loss(routing: Routing, lengths: Tensor, shared: ContextLayout | None = None) -> Tensor:
    """Balance loss of each document, averaged over documents by their tokens.

    For a document of T tokens `sum_e f_e P_e` with `f_e = E / (K T) * count_e` and `P_e` the mean over its tokens of
    `s_e / sum_j s_j`. It is 1 when the load is even. Source: DeepSeek-V3 report (arXiv:2412.19437), section 2.1.2.

    Args:
        routing: Routing of the batch's T tokens.
        lengths: Tokens of each document, int64 [N], summing to T.
        shared: Where ranks share the batch, what this rank has of it: `routing` is of its tokens, and the losses of all
            ranks add up to that of the batch. All of them have to call it.
    """
    num_experts = routing.scores.shape[1]
    top_k = routing.expert.shape[1]
    document = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    if shared is not None:
        document = shared.document
    chosen = torch.zeros_like(routing.scores).scatter_(1, routing.expert, 1.0)
    share = routing.scores / routing.scores.sum(-1, keepdim=True)
    zeros = share.new_zeros(len(lengths), num_experts)
    count = zeros.index_add(0, document, chosen)  # [N, E]
    if shared is not None:
        count = sum_over_ranks(count, shared)
    mass = zeros.index_add(0, document, share)  # [N, E], P_e times T
    per_document = (count * mass).sum(-1) * num_experts / (top_k * lengths)  # f_e P_e times T
    return per_document.sum() / lengths.sum()


@torch.no_grad()
def update_correction_bias(router: Router, load: Tensor, rate: float) -> None:
    """Raise the bias of experts below the mean load by `rate`, lower it above: `b += rate * sign(mean - load)`.

    Args:
        router: The router to steer.
        load: Tokens of each expert over the whole optimiser step, [E].
        rate: Size of the step; the GLM-4.5 report (arXiv:2508.06471), section 2.4, uses 0.001.

    Source: loss-free balancing (arXiv:2408.15664), algorithm 1.
    """
    load = load.to(torch.float32)
    router.e_score_correction_bias += rate * torch.sign(load.mean() - load)
