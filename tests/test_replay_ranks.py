"""Routing replay of a model that ranks share."""

import numpy as np
import torch
import torch.distributed as dist
from conftest import TINY
from context_ranks import random_model
from distributed import run_ranks

from glmcore.model.layout import DocumentLayout
from glmcore.model.parallel.apply import parallelize
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.context import layout_of
from glmcore.model.parallel.ranks import Ranks

LAYOUTS = [{"data": 2}, {"data": 2, "expert": 2}, {"tensor": 2}, {"context": 2}]
LENGTHS = [9, 20, 3]


def hidden_with_replay(parallel: dict) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Places of this rank's tokens, their hidden states, and whether each layer has replaced choices."""
    bounds = np.concatenate(([0], np.cumsum(LENGTHS))).astype(np.int32)
    ids, positions = torch.arange(sum(LENGTHS)) % 50, torch.cat([torch.arange(length) for length in LENGTHS])
    plain = random_model(TINY)
    layout = DocumentLayout.from_cu_seqlens(bounds)
    own = plain(ids, positions, layout).routings
    recorded = torch.stack([(routing.expert + 1) % TINY["n_routed_experts"] for routing in own], 1)
    recorded[0] = -1
    model = random_model(TINY)
    if parallel:
        ranks = Ranks(ParallelConfig(**parallel))
        parallelize(model, ranks)
        layout = layout_of(bounds, ranks.axis("context"))
    with torch.no_grad():
        output = model(ids, positions, layout, experts=recorded)
    told = [routing.replaced is not None and bool(routing.replaced.any()) for routing in output.routings]
    return layout.local(torch.arange(len(ids))).numpy(), output.hidden.numpy(), told


def of_a_rank(rank: int) -> list:
    assert dist.get_rank() == rank
    return [hidden_with_replay(layout) for layout in LAYOUTS]


def test_ranks_that_share_a_model_replay_as_one_process_does():
    _, expected, replaced = hidden_with_replay({})
    assert all(replaced)
    for found in run_ranks(2, of_a_rank, timeout=150):
        for layout, (places, hidden, told) in zip(LAYOUTS, found, strict=True):
            assert all(told), layout
            # Sums of float64 in another order; hidden states are of size 1.
            np.testing.assert_allclose(hidden, expected[places], rtol=0, atol=1e-12, err_msg=str(layout))
