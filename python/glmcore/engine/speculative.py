"""Speculative sampling: drafts are kept or replaced so that tokens have the distribution that they have without them.

A token x that was drafted from q stays with probability min(1, p(x) / q(x)), where p is what the token would be drawn
from; the first that does not stay is replaced by one drawn from max(p - q, 0), normalised, and ends the step. Where all
stay, one more is drawn. Both p and q are what temperature and truncation leave. At temperature 0 both are certain, so a
draft stays if it is the token that would have come.

Source: Leviathan et al. (arXiv:2211.17192), section 2.3 and appendix A.1.

Shapes: B sequences, K drafts of each, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from glmcore.engine.drawing import draw
from glmcore.engine.sampler import Rows, Sampler, heat_up, likeliest_tokens, replace_broken
from glmcore.engine.sampling import STREAM_ACCEPT, STREAM_DRAFT, STREAM_TOKEN


@dataclass(frozen=True)
class Verified:
    """What a step with drafts drew."""

    tokens: list[list[int]]
    """New tokens of each sequence: the drafts that stay and one more."""
    logprobs: list[list[float]]
    """See `Drawn.logprobs`."""
    top_logprobs: list[list[dict[int, float]]]
    """See `Drawn.top_logprobs`; empty where a sequence did not ask."""
    broken: list[bool]
    """Whether the scores of a sequence are no numbers."""


def draft(sampler: Sampler, logits: Tensor, slots: Sequence[int], ahead: int) -> tuple[Tensor, Tensor]:
    """Draw a draft for each sequence.

    Args:
        sampler: Has the sequences.
        logits: Scores of the MTP layer, [B, V]; overwritten.
        slots: Of the sequences, [B].
        ahead: Drafts that each has already.

    Returns:
        The drafts, int64 [B], and what they were drawn from, [B, V].
    """
    rows = sampler.rows(slots)
    probability = _distribution(logits, rows)
    return draw(probability, sampler.uniforms(rows, STREAM_DRAFT, ahead)), probability


def verify(sampler: Sampler, logits: Tensor, slots: Sequence[int], drafts: Tensor, drafted_from: Tensor) -> Verified:
    """Decide which drafts stay and draw what follows them, and remember it.

    Args:
        sampler: Has the sequences, none of which has edited scores.
        logits: Scores of the model after the last token and after each draft, [B, K + 1, V]; overwritten.
        slots: Of the sequences, distinct, [B].
        drafts: int64 [B, K].
        drafted_from: What they were drawn from, [B, K, V].
    """
    count, num_drafts = drafts.shape
    rows = sampler.rows(slots)
    every = _repeated(rows, num_drafts + 1)
    scores = logits.flatten(0, 1)
    target = _distribution(scores, every).view_as(logits)

    places = range(num_drafts)
    uniform = torch.stack([sampler.uniforms(rows, STREAM_ACCEPT, ahead) for ahead in places], 1)
    wanted = target[:, :-1].gather(2, drafts[..., None]).squeeze(2)
    offered = drafted_from.gather(2, drafts[..., None]).squeeze(2)
    stays = uniform * offered < wanted
    kept = stays.long().cumprod(1).sum(1)  # [B]

    each = torch.arange(count, device=logits.device)
    at_end = target[each, kept]  # [B, V]
    rejected = drafted_from[each, kept.clamp(max=num_drafts - 1)].masked_fill((kept == num_drafts)[:, None], 0)
    rest = (at_end - rejected).clamp_(min=0)
    # Where p and q agree to rounding nothing is left, and what was rejected by a hair is drawn from p.
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, at_end)
    steps = kept.cpu().numpy()
    final = draw(rest, sampler.uniforms(rows, STREAM_TOKEN, steps))

    tokens = torch.cat([drafts, final[:, None]], 1)
    tokens[each, kept] = final
    broken = logits[..., 0].isnan().any(1)
    logprobs = scores.log_softmax(-1).gather(1, tokens.view(-1, 1)).view(count, -1)
    top = likeliest_tokens(scores, every.num_top)
    sampler.advance(rows, steps + 1)
    lengths = (steps + 1).tolist()
    first = [row * (num_drafts + 1) for row in range(count)]
    return Verified(
        [ids[:length] for ids, length in zip(tokens.tolist(), lengths, strict=True)],
        [values[:length] for values, length in zip(logprobs.tolist(), lengths, strict=True)],
        [
            [top[row + i] for i in range(length)] if row in top else []
            for row, length in zip(first, lengths, strict=True)
        ],
        broken.tolist(),
    )


def _distribution(logits: Tensor, rows: Rows) -> Tensor:
    """What tokens are drawn from, [B, V]. Divides the scores by their temperatures, in place."""
    greedy = (rows.temperature == 0).nonzero().squeeze(1)
    best = logits[greedy.to(logits.device)].argmax(-1, keepdim=True)
    heat_up(logits, rows.heat)
    probability = logits.softmax(-1)
    replace_broken(probability)
    chosen = rows.truncated.nonzero().squeeze(1)
    if len(chosen):
        likely, ids = rows.truncate(probability, chosen)
        likely /= likely.sum(-1, keepdim=True)
        probability[chosen.to(logits.device)] = torch.zeros_like(probability[: len(chosen)]).scatter_add_(
            1, ids, likely
        )
    if len(greedy):
        certain = torch.zeros_like(probability[: len(greedy)]).scatter_(1, best, 1.0)
        probability[greedy.to(logits.device)] = certain
    return probability


def _repeated(rows: Rows, times: int) -> Rows:
    """The same parameters for each of `times` places of every sequence."""
    names = ("temperature", "top_p", "min_p", "top_k", "num_top", "penalty", "edited")
    parts = {name: getattr(rows, name).repeat_interleave(times) for name in names}
    return replace(rows, slots=np.repeat(rows.slots, times), **parts)
