"""Next-token cross-entropy that never holds the logits of all tokens.

Shapes: T tokens, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from glmcore.train.split_loss import SplitCrossEntropy

IGNORED = -100
"""Label of a token that carries no loss."""

CHUNK_TOKENS = 512
"""Tokens whose logits are held at once: 16 MiB in float32 at a vocabulary of 8,192."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor | None) -> Tensor:
        loss = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        for start in range(0, len(labels), CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            label = labels[rows, None]
            logits = (hidden[rows] @ weight.T).to(loss.dtype)
            log_norm = logits.logsumexp(-1, keepdim=True)
            losses = log_norm - logits.gather(1, label)
            share = None if token_weights is None else token_weights[rows, None].to(loss.dtype)
            loss += losses.sum() if share is None else (losses * share).sum()
            grad = logits.sub_(log_norm).exp_()
            grad.scatter_add_(1, label, grad.new_full(label.shape, -1.0))
            grad = (grad if share is None else grad.mul_(share)).to(hidden.dtype)
            grad_hidden[rows] = grad @ weight
            grad_weight.addmm_(grad.T, hidden[rows])
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * grads[0].to(grad_hidden.dtype),
            grad_weight * grads[0].to(grad_weight.dtype),
            None,
            None,
        )


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor | None = None) -> Tensor:
    """Sum over tokens of the cross-entropy of `softmax(hidden @ weight.T)` with `labels`.

    Gradients are formed chunk by chunk in the forward pass, so nothing of size [T, V] is kept and no product is
    computed twice. Tokens labelled `IGNORED` cost nothing.

    Args:
        hidden: [T, D].
        weight: Output head, [V, D]; a DTensor where tensor ranks share out its rows, all of which call then with equal
            hidden states, labels and weights of tokens.
        labels: Next tokens, int64 [T].
        token_weights: Factor of each token's loss, [T]; without it all count once. They get no gradient.

    Returns:
        Scalar in float32 or wider.
    """
    kept = (labels != IGNORED).nonzero().squeeze(1)
    if len(kept) < len(labels):
        hidden, labels = hidden[kept], labels[kept]
        token_weights = None if token_weights is None else token_weights[kept]
    if isinstance(weight, DTensor):
        group, chunk = weight.device_mesh.get_group(), CHUNK_TOKENS * weight.device_mesh.size()
        return SplitCrossEntropy.apply(hidden, weight.to_local(), labels, token_weights, group, chunk)  # pyright: ignore[reportReturnType]
    return _LinearCrossEntropy.apply(hidden, weight, labels, token_weights)  # pyright: ignore[reportReturnType]
