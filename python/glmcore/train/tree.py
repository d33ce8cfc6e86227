"""Losses of samples that share prefixes, equal to those of the samples one by one.

Shapes: T tokens of a forest, n tokens of all samples, D hidden size, V vocabulary, K experts per token, E experts.

What is equal to float rounding: cross-entropy, log-probabilities, the MTP loss and every gradient of them, and with
`routing_of_samples` the balance statistics too. In the MTP layer only the step behind a sample's last token, which
predicts nothing, has no counterpart: its routing is missing from the MTP layer's balance statistics.
"""

import torch
from torch import Tensor

from glmcore.model.moe import Routing
from glmcore.model.tree import TreeLayout
from glmcore.prefixes import PrefixForest
from glmcore.train.loss import IGNORED, linear_cross_entropy


def tree_cross_entropy(
    hidden: Tensor, weight: Tensor, input_ids: Tensor, layout: TreeLayout, token_weights: Tensor
) -> Tensor:
    """Weighted sum of the next-token cross-entropies of a forest.

    Args:
        hidden: Hidden states, [T, D]: `Output.hidden`.
        weight: Output head, [V, D].
        input_ids: int64 [T].
        layout: The forest.
        token_weights: Weight of the loss of predicting each token, [T]: `PrefixForest.sum_over_samples` of the
            samples' loss weights. First tokens are predicted by nothing, whatever their weight.

    Returns:
        Scalar in float32 or wider.
    """
    return _cross_entropy(hidden, weight, input_ids, layout.parent, token_weights)


def tree_mtp_cross_entropy(
    mtp_hidden: Tensor, weight: Tensor, input_ids: Tensor, layout: TreeLayout, token_weights: Tensor
) -> Tensor:
    """The same of the MTP layer: each token from the two before it, `Output.mtp_hidden` being at the nearer one."""
    parent = layout.parent
    has_two_before = (parent >= 0) & (parent[parent.clamp(min=0)] >= 0)
    return _cross_entropy(mtp_hidden, weight, input_ids, parent.where(has_two_before, -1), token_weights)


def _cross_entropy(hidden: Tensor, weight: Tensor, ids: Tensor, source: Tensor, token_weights: Tensor) -> Tensor:
    labels = ids.where((source >= 0) & (token_weights != 0), IGNORED)
    kept = (labels != IGNORED).nonzero().squeeze(1)
    return linear_cross_entropy(hidden[source[kept]], weight, labels[kept], token_weights[kept])


def tree_logprobs(logits: Tensor, input_ids: Tensor, layout: TreeLayout) -> Tensor:
    """Log-probability of each token of a forest after what comes before it, [T]; 0 for first tokens.

    For the samples' own tokens, take it at `PrefixForest.place`: the gradients of all samples that share a token then
    add up in it, whatever is made of them.

    Args:
        logits: Scores of the next token, [T, V].
        input_ids: int64 [T].
        layout: The forest.
    """
    source = layout.parent.clamp(min=0)
    logprobs = logits.log_softmax(-1)[source, input_ids]
    return logprobs.where(layout.parent >= 0, 0.0)


def routing_of_samples(routing: Routing, forest: PrefixForest) -> Routing:
    """The routing of every token of every sample, for `sequence_balance_loss` and `expert_load`: n rows.

    Both count tokens by sample, and a shared token is of several samples.
    """
    place = torch.from_numpy(forest.place).long().to(routing.expert.device)
    return Routing(routing.expert[place], routing.weight[place], routing.scores[place])
