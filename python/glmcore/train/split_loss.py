"""The cross-entropy of `glmcore.train.loss` with an output head whose rows several ranks share out.

Shapes: T tokens, D hidden size, W rows of the vocabulary that this rank has.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class SplitCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies; hidden states, labels and the sum are the same on all ranks of `group`.

    Of each token a rank has the logits of its rows alone. The largest of all logits, the sum of their exponentials and
    the logit of the label are brought together, three numbers a token, and in the end the gradient of the hidden
    states. Source: Megatron-LM (arXiv:1909.08053), section 3.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        token_weights: Tensor | None,
        group: dist.ProcessGroup,
        chunk_tokens: int,
    ) -> Tensor:
        loss = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        first = dist.get_rank(group) * len(weight)
        for start in range(0, len(labels), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            place = labels[rows, None] - first
            is_here = (place >= 0) & (place < len(weight))
            place = place.where(is_here, 0)
            logits = (hidden[rows] @ weight.T).to(loss.dtype)
            largest = logits.amax(-1, keepdim=True)
            dist.all_reduce(largest, dist.ReduceOp.MAX, group)
            of_label = (logits.gather(1, place) - largest).where(is_here, 0.0)
            grad = logits.sub_(largest).exp_()
            sums = torch.stack((grad.sum(-1, keepdim=True), of_label))
            dist.all_reduce(sums, group=group)
            losses = sums[0].log() - sums[1]
            share = None if token_weights is None else token_weights[rows, None].to(loss.dtype)
            loss += losses.sum() if share is None else (losses * share).sum()
            grad.div_(sums[0]).scatter_add_(1, place, -is_here.to(grad.dtype))
            grad = (grad if share is None else grad.mul_(share)).to(hidden.dtype)
            grad_hidden[rows] = grad @ weight
            grad_weight.addmm_(grad.T, hidden[rows])
        dist.all_reduce(grad_hidden, group=group)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * grads[0].to(grad_hidden.dtype),
            grad_weight * grads[0].to(grad_weight.dtype),
            None,
            None,
            None,
            None,
        )
