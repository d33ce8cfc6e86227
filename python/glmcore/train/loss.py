"""Next-token cross-entropy that never holds the logits of all tokens.

Shapes: T tokens, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token that carries no loss."""

CHUNK_BYTES = 2**24
"""Float32 logits that are held at once, so that they stay in a processor's last cache; see `chunk_tokens`."""
MIN_CHUNK_TOKENS = 256
"""Fewer tokens at once would spend more time on reading the head than on products with it."""


def chunk_tokens(vocab_size: int) -> int:
    """Tokens whose logits are held at once: 512 at a vocabulary of 8,192, 256 (148 MiB) at 151,552."""
    return max(MIN_CHUNK_TOKENS, CHUNK_BYTES // (4 * vocab_size))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor | None) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss = hidden.new_zeros((), dtype=wide)
        learns = any(ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if learns else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if learns else None
        step = chunk_tokens(len(weight))
        for start in range(0, len(labels), step):
            rows = slice(start, start + step)
            share = None if token_weights is None else token_weights[rows, None].to(wide)
            losses, grad = _chunk((hidden[rows] @ weight.T).to(wide), labels[rows, None], share, learns)
            loss += losses
            if grad is not None and grad_hidden is not None and grad_weight is not None:
                grad = grad.to(hidden.dtype)
                torch.mm(grad, weight, out=grad_hidden[rows])
                if hidden.dtype == wide:
                    grad_weight.addmm_(grad.T, hidden[rows])
                else:  # chunks are summed in float32
                    grad_weight += grad.T @ hidden[rows]
        if learns:
            assert grad_weight is not None
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
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


def _chunk(logits: Tensor, label: Tensor, share: Tensor | None, learns: bool) -> tuple[Tensor, Tensor | None]:
    """Sum of the losses of some tokens, and its gradient by their logits, which are overwritten with it."""
    of_label = logits.gather(1, label)
    top = logits.amax(-1, keepdim=True)
    exponentials = logits.sub_(top).exp_()
    total = exponentials.sum(-1, keepdim=True)
    losses = top + total.log() - of_label
    loss = losses.sum() if share is None else (losses * share).sum()
    if not learns:
        return loss, None
    grad = exponentials.mul_(total.reciprocal() if share is None else share / total)
    less = torch.full_like(of_label, -1.0) if share is None else -share
    return loss, grad.scatter_add_(1, label, less)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor | None = None) -> Tensor:
    """Sum over tokens of the cross-entropy of `softmax(hidden @ weight.T)` with `labels`.

    Gradients are formed chunk by chunk in the forward pass, so nothing of size [T, V] is kept and no product is
    computed twice; without a gradient asked for they are not formed. Sums over tokens and over the vocabulary are in
    float32 or wider. Tokens labelled `IGNORED` cost nothing.

    Args:
        hidden: [T, D].
        weight: Output head, [V, D].
        labels: Next tokens, int64 [T].
        token_weights: Factor of each token's loss, [T]; without it all count once. They get no gradient.

    Returns:
        Scalar in float32 or wider.
    """
    kept = (labels != IGNORED).nonzero().squeeze(1)
    if len(kept) < len(labels):
        hidden, labels = hidden[kept], labels[kept]
        token_weights = None if token_weights is None else token_weights[kept]
    return _LinearCrossEntropy.apply(hidden, weight, labels, token_weights)  # pyright: ignore[reportReturnType]
