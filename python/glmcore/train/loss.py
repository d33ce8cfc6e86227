"""Next-token cross-entropy that never holds the logits of all tokens.

Shapes: T tokens, D hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

IGNORED = -100
"""Label of a token that carries no loss."""

CHUNK_BYTES = 2**24
"""Float32 logits that are held at once, so that they stay in a processor's last cache; see `chunk_tokens`."""
MIN_CHUNK_TOKENS = 256
"""Fewer tokens at once would spend more time on reading the head than on products with it."""


def chunk_tokens(vocab_size: int) -> int:
    """Tokens whose logits are held at once: 512 at a vocabulary of 8,192, 256 (148 MiB) at 151,552."""
    return max(MIN_CHUNK_TOKENS, CHUNK_BYTES // (4 * vocab_size))


@dataclass(frozen=True)
class _Split:
    """Which rows of the output head this rank has, where the ranks of a group share them out.

    Of each token a rank then has some logits. The largest of all of them, the sum of their exponentials and the logit
    of the label are brought together, and in the end the gradient of the hidden states.
    Source: Megatron-LM (arXiv:1909.08053), section 3.
    """

    group: dist.ProcessGroup
    first: int
    size: int

    @classmethod
    def of(cls, weight: DTensor) -> "_Split":
        mesh = weight.device_mesh
        if mesh.ndim != 1 or not weight.placements[0].is_shard(0):
            raise ValueError("the head is a shard: use it between the forward pass of the model and the backward pass")
        size = weight.shape[0] // mesh.size()
        return cls(mesh.get_group(), mesh.get_local_rank() * size, size)

    def place(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Row of each label here, 0 if it is on another rank, and whether it is here."""
        is_here = (label >= self.first) & (label < self.first + self.size)
        return (label - self.first).where(is_here, 0), is_here

    def sum(self, *values: Tensor) -> Tensor:
        """The sums of some values of one shape over the ranks."""
        total = torch.stack(values)
        dist.all_reduce(total, group=self.group)
        return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor | None, split: _Split | None
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss = hidden.new_zeros((), dtype=wide)
        learns = any(ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if learns else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if learns else None
        step = chunk_tokens(len(weight))
        for start in range(0, len(labels), step):
            rows = slice(start, start + step)
            share = None if token_weights is None else token_weights[rows, None].to(wide)
            losses, grad = _chunk((hidden[rows] @ weight.T).to(wide), labels[rows, None], share, learns, split)
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
            assert grad_hidden is not None
            if split is not None:
                dist.all_reduce(grad_hidden, group=split.group)
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * grads[0].to(grad_hidden.dtype),
            grad_weight * grads[0].to(grad_weight.dtype),
            None,
            None,
            None,
        )


def _chunk(
    logits: Tensor, label: Tensor, share: Tensor | None, learns: bool, split: _Split | None
) -> tuple[Tensor, Tensor | None]:
    """Sum of the losses of some tokens, and its gradient by their logits, which are overwritten with it."""
    label, is_here = (label, None) if split is None else split.place(label)
    of_label = logits.gather(1, label)
    top = logits.amax(-1, keepdim=True)
    if split is not None:
        dist.all_reduce(top, dist.ReduceOp.MAX, split.group)
    exponentials = logits.sub_(top).exp_()
    total = exponentials.sum(-1, keepdim=True)
    if split is not None and is_here is not None:
        total, of_label = split.sum(total, of_label.where(is_here, 0.0))
    losses = top + total.log() - of_label
    loss = losses.sum() if share is None else (losses * share).sum()
    if not learns:
        return loss, None
    grad = exponentials.mul_(total.reciprocal() if share is None else share / total)
    less = torch.full_like(of_label, -1.0) if share is None else -share
    return loss, grad.scatter_add_(1, label, less if is_here is None else less.where(is_here, 0.0))


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor | None = None) -> Tensor:
    """Sum over tokens of the cross-entropy of `softmax(hidden @ weight.T)` with `labels`.

    Gradients are formed chunk by chunk in the forward pass, so nothing of size [T, V] is kept and no product is
    computed twice; without a gradient asked for they are not formed. Sums over tokens and over the vocabulary are in
    float32 or wider. Tokens labelled `IGNORED` cost nothing.

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
    split = None
    if isinstance(weight, DTensor):
        weight, split = weight.to_local(), _Split.of(weight)
    return _LinearCrossEntropy.apply(hidden, weight, labels, token_weights, split)  # pyright: ignore[reportReturnType]
