"""Tokens from scores, for a whole batch at once.

Shapes: B sequences, V vocabulary, R of the sequences, M tokens that may come, S groups of tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 64
"""Tokens whose probabilities are summed before the cumulative sum, which is then so much shorter."""


def most_likely(probability: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that truncation leaves, most likely first; at least one.

    Tokens are ordered by probability, equal ones by id. Of this order `top_k` keeps so many, `top_p` those before which
    the sum is below this part of what `top_k` kept, `min_p` those at least this times as likely as the first.

    Args:
        probability: Sums to 1 in each row, float32 or wider [R, V].
        top_k: int64 [R]; 0 for all.
        top_p: float32 [R]; 1 for all.
        min_p: float32 [R]; 0 for all.

    Returns:
        Probabilities, which no longer sum to 1, and ids of the tokens, [R, M]; rows are filled up with probability 0.
    """
    vocab_size = probability.shape[1]
    least = probability.amax(-1) * min_p
    rank_limit = torch.where(top_k > 0, top_k, vocab_size).clamp(max=vocab_size)
    # Tokens below half of (1 - top_p) / V have less than half of 1 - top_p together: no nucleus needs them.
    needless = ((1 - top_p) * (0.5 / vocab_size)).to(least)
    floor = torch.maximum(least, needless)
    if bool((top_k > 0).any()):
        wanted = torch.where(top_k > 0, rank_limit, 1)
        highest = probability.topk(int(wanted.max()), dim=-1).values
        last = highest.gather(1, wanted[:, None] - 1).squeeze(1)
        floor = torch.where(top_k > 0, last, floor)  # what min_p leaves out is part of what top_k kept
    ordered, token = _in_order(probability, floor)
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    ordered = ordered.masked_fill(rank >= rank_limit[:, None], 0)
    cumulative = ordered.cumsum(-1, dtype=torch.float64)
    nucleus = torch.where(top_k > 0, cumulative[:, -1], 1.0) * top_p
    beyond = (cumulative - ordered >= nucleus[:, None]) & (top_p < 1)[:, None] | (ordered < least[:, None])
    beyond[:, 0] = False
    return ordered.masked_fill(beyond, 0), token


def _in_order(probability: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of at least `floor`, most likely first: probabilities and ids [R, M], filled up with zeros."""
    row, token = (probability >= floor[:, None]).nonzero(as_tuple=True)
    if 2 * len(row) > probability.numel():
        return probability.sort(dim=-1, descending=True, stable=True)
    count = torch.bincount(row, minlength=len(probability))
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    shape = (len(probability), int(count.max()))
    packed, ids = probability.new_zeros(shape), token.new_zeros(shape)
    packed[row, place] = probability[row, token]
    ids[row, place] = token
    ordered, order = packed.sort(dim=-1, descending=True, stable=True)
    return ordered, ids.gather(1, order)


def draw(probability: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative distribution at `uniform`: a token of each sequence, never one of probability 0.

    Args:
        probability: Not negative, need not sum to 1, not all zero in a row, float32 or wider [B, V].
        uniform: Random numbers in [0, 1), float64 [B].

    Returns:
        int64 [B].
    """
    padding = -probability.shape[1] % GROUP
    groups = F.pad(probability, (0, padding)) if padding else probability
    groups = groups.unflatten(1, (-1, GROUP))  # [B, S, GROUP]
    group, rest = _find(groups.sum(-1).double(), uniform, None)
    inside = groups[torch.arange(len(group), device=group.device), group].double()
    place, _ = _find(inside, uniform, rest)
    return group * GROUP + place


def _find(mass: Tensor, uniform: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """First place whose cumulative sum exceeds `target`, and what of the target lies beyond the places before it."""
    cumulative = mass.cumsum(-1)
    total = cumulative[:, -1]
    # Strictly below the total, also after rounding: so the place found has mass.
    below = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(uniform * total if target is None else target, below)
    place = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1).clamp(max=mass.shape[1] - 1)
    before = cumulative.gather(1, (place - 1).clamp(min=0)[:, None]).squeeze(1).masked_fill(place == 0, 0.0)
    return place, target - before
