"""Log-probabilities of the answers' tokens, without holding the scores of all tokens.

Shapes: N tokens, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glmcore.model.glm import Glm
from glmcore.model.layout import DocumentLayout
from glmcore.model.tree import TreeLayout
from glmcore.prefixes import share_prefixes
from glmcore.ragged import Ragged
from glmcore.rl.routing_replay import lay_out, recorded_experts, replaced_choices
from glmcore.trajectory import Sample

CHUNK_BYTES = 64 << 20
"""Scores that are held at once."""


class TokenLogprobs(NamedTuple):
    """What a policy says of tokens."""

    logprobs: Tensor
    """Log-probability of each token, float32 or wider [N], differentiable."""
    entropy: Tensor
    """Entropy in nats of the distribution that each was drawn from, [N], without gradient."""
    replaced: Tensor | None = None
    """With replay: `glmcore.rl.routing_replay.replaced_choices` of the forward pass."""


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropy = (hidden.new_empty(len(ids), dtype=wide) for _ in range(2))
        for rows in _chunks(len(ids), len(weight)):
            scores = _log_softmax(hidden[rows], weight, _at(temperature, rows), wide)
            logprobs[rows] = scores.gather(1, ids[rows, None]).squeeze(1)
            entropy[rows] = -(scores.exp() * scores).sum(1)
        ctx.save_for_backward(hidden, weight, ids)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, ids = ctx.saved_tensors
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for rows in _chunks(len(ids), len(weight)):
            temperature = _at(ctx.temperature, rows)
            grad = grads[0][rows, None] / temperature
            scores = _log_softmax(hidden[rows], weight, temperature, grads[0].dtype).exp_().mul_(-grad)
            scores.scatter_add_(1, ids[rows, None], grad)
            scores = scores.to(hidden.dtype)
            grad_hidden[rows] = scores @ weight
            grad_weight.addmm_(scores.T, hidden[rows])
        return grad_hidden, grad_weight, None, None


def response_logprobs(
    model: Glm, samples: Sequence[Sample], temperature: float | Sequence[float], *, replay: bool = False
) -> TokenLogprobs:
    """What the model says of every token with `loss_mask` set, sample after sample.

    Args:
        model: The policy.
        samples: Rollouts.
        temperature: That they were sampled at: one, or one each.
        replay: Route every token as the engine did: see `glmcore.rl.routing_replay`.

    Raises:
        RunError: The engine did not record its choices.
    """
    lengths = [len(sample.ids) for sample in samples]
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    ids = torch.from_numpy(np.concatenate([sample.ids for sample in samples]).astype(np.int64))
    positions = torch.cat([torch.arange(length) for length in lengths])
    recorded = recorded_experts(model, samples) if replay else None
    experts = None if recorded is None else lay_out(recorded, lengths, np.arange(len(ids)), len(ids))
    output = model(ids, positions, DocumentLayout.from_cu_seqlens(cu_seqlens), experts=experts)
    mask = np.concatenate([sample.loss_mask for sample in samples]) != 0
    place = torch.from_numpy(np.flatnonzero(mask))  # never a document's first token: prompts are not empty
    if not isinstance(temperature, float):
        counts = torch.tensor([int((sample.loss_mask != 0).sum()) for sample in samples])
        of_token = torch.tensor(temperature, dtype=torch.float32).repeat_interleave(counts)
    else:
        of_token = temperature
    told = linear_logprobs(output.hidden[place - 1], model.lm_head.weight, ids[place], of_token)
    return told if experts is None else told._replace(replaced=replaced_choices(output, experts))


def shared_response_logprobs(
    model: Glm, samples: Sequence[Sample], temperature: float, *, replay: bool = False
) -> TokenLogprobs:
    """The same from one forest of the samples, in which a prompt is there once for all its rollouts.

    With replay it takes the way of the first of them, which is that of all unless the weights changed between them.
    """
    lengths = [len(sample.ids) for sample in samples]
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    forest = share_prefixes(Ragged(np.concatenate([sample.ids for sample in samples]), offsets))
    layout = TreeLayout.from_forest(forest)
    ids = torch.from_numpy(forest.input_ids.astype(np.int64))
    recorded = recorded_experts(model, samples) if replay else None
    experts = None if recorded is None else lay_out(recorded, lengths, forest.place, len(ids))
    output = model(ids, torch.from_numpy(forest.position_ids.astype(np.int64)), layout, experts=experts)
    mask = np.concatenate([sample.loss_mask for sample in samples]) != 0
    token, of_sample = np.unique(forest.place[mask], return_inverse=True)
    place = torch.from_numpy(token.astype(np.int64))  # never a first token: prompts are not empty
    before = output.hidden[layout.parent[place]]
    told = linear_logprobs(before, model.lm_head.weight, ids[place], temperature)
    index = torch.from_numpy(of_sample)
    replaced = None if experts is None else replaced_choices(output, experts)
    return TokenLogprobs(told.logprobs[index], told.entropy[index], replaced)


def linear_logprobs(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float | Tensor) -> TokenLogprobs:
    """Log-probability of `ids` under `softmax(hidden @ weight.T / temperature)`, and the entropy.

    Scores are formed chunk by chunk, and again in the backward pass, so nothing of size [N, V] is kept.

    Args:
        hidden: States that predict the tokens, [N, D].
        weight: Output head, [V, D].
        ids: The tokens, int64 [N].
        temperature: Above 0; one for all tokens, or one each, [N].
    """
    return TokenLogprobs(*_LinearLogprobs.apply(hidden, weight, ids, temperature))  # pyright: ignore[reportCallIssue, reportGeneralTypeIssues]


def _chunks(num_tokens: int, vocab_size: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    return [slice(start, start + size) for start in range(0, num_tokens, size)]


def _at(temperature: float | Tensor, rows: slice) -> float | Tensor:
    return temperature[rows, None] if isinstance(temperature, Tensor) else temperature


def _log_softmax(hidden: Tensor, weight: Tensor, temperature: float | Tensor, dtype: torch.dtype) -> Tensor:
    return ((hidden @ weight.T).to(dtype) / temperature).log_softmax(-1)
