"""Routing replay: a router takes the experts that another forward pass has chosen.

The router computes its scores as ever, and the mixing weights are those of the replayed experts, so the gradient flows
into the router through them; what is replaced is the choice alone. Source: rollout routing replay (arXiv:2510.11370),
section 3.

Shapes: T tokens, K experts per token.
"""

import torch
from torch import Tensor

UNKNOWN = -1
"""In place of an expert: nobody knows what the token chose, so it chooses itself."""


def replay_choice(own: Tensor, recorded: Tensor) -> tuple[Tensor, Tensor]:
    """The experts to use, and where they are others than the router's own.

    A token whose recorded experts are its own keeps them in its own order, so that replaying what would be chosen
    anyway changes no bit.

    Args:
        own: What the router would choose, int64 [T, K].
        recorded: What was chosen, in any order, `UNKNOWN` in rows of which nothing is known; int [T, K].

    Returns:
        int64 [T, K]; bool [T].
    """
    recorded = recorded.to(own.dtype)
    differs = (own.sort(-1).values != recorded.sort(-1).values).any(-1) & (recorded[:, 0] != UNKNOWN)
    return torch.where(differs[:, None], recorded, own), differs
