"""Expert parallelism: ranks share out the routed experts.

With `expert` ranks every rank has other tokens: rows go to the ranks that hold their experts and come back, in one
exchange each way and as many in the backward pass. With `tensor` ranks every rank has all tokens of its group: each
applies its own experts to them, and what they get is summed up with the shared expert's. With both, experts lie in
`expert` blocks of `tensor` parts, and rows travel between the ranks of one part. No row is dropped or padded.

Source of the exchange: GShard (arXiv:2006.16668), section 3.
"""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import Shard

from glmcore.errors import ConfigError
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.moe import Experts, MixtureOfExperts, apply_experts
from glmcore.model.parallel.collectives import exchange
from glmcore.model.parallel.placement import local_part, split
from glmcore.model.parallel.ranks import Ranks
from glmcore.model.routing import gather_rows


def check_expert_split(config: GlmConfig, num_expert_ranks: int, num_tensor_ranks: int) -> None:
    """Make sure that the experts can be shared out.

    Raises:
        ConfigError: The ranks do not divide them.
    """
    if config.n_routed_experts % (num_expert_ranks * num_tensor_ranks):
        raise ConfigError(
            f"parallel.expert * parallel.tensor = {num_expert_ranks} * {num_tensor_ranks} must divide "
            f"model.n_routed_experts={config.n_routed_experts}"
        )


def split_experts(model: Glm, ranks: Ranks) -> None:
    """Give this rank its experts of every layer."""
    for module in list(model.modules()):
        if isinstance(module, MixtureOfExperts):
            module.experts = SplitExperts(module.experts, ranks)


class SplitExperts(Experts):
    """Some of the experts of a layer; takes and gives rows of all of them.

    Args:
        whole: The experts.
        ranks: Who shares them out.
    """

    def __init__(self, whole: Experts, ranks: Ranks) -> None:
        nn.Module.__init__(self)
        names = [name for name in ("expert", "tensor") if ranks.config.size(name) > 1]
        mesh = ranks.mesh(*names)
        self.num_experts = len(whole.gate_up_proj)
        self.gate_up_proj = split(whole.gate_up_proj, mesh, *[Shard(0)] * len(names))
        self.down_proj = split(whole.down_proj, mesh, *[Shard(0)] * len(names))
        self.expert, self.tensor = ranks.axis("expert"), ranks.axis("tensor")

    def forward(self, rows: Tensor, ends: Tensor) -> Tensor:
        """Apply all experts together with the other ranks, which must call too.

        Args:
            rows: [R, D]. Those of expert e are `ends[e - 1]` up to `ends[e]`; equal on all tensor ranks.
            ends: int32 [E].

        Returns:
            [R, D]; of several tensor ranks each gives zeros in rows of the others' experts.
        """
        counts = torch.diff(ends.long(), prepend=ends.new_zeros(1).long())
        counts = counts.view(self.expert.size, self.tensor.size, -1)
        if self.tensor.size == 1:
            return self._exchange(rows, counts[:, 0])
        own = self._own_rows(counts)
        result = self._exchange(rows.index_select(0, own), counts[:, self.tensor.rank])
        return torch.zeros_like(rows).index_copy(0, own, result)

    def _own_rows(self, counts: Tensor) -> Tensor:
        """Places of the rows of this tensor rank's experts."""
        is_own = torch.zeros_like(counts, dtype=torch.bool)
        is_own[:, self.tensor.rank] = True
        return torch.repeat_interleave(is_own.flatten(), counts.flatten()).nonzero().squeeze(1)

    def _exchange(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Apply the experts of all expert ranks to `rows` [R, D], of which `counts` [P, n] are for each expert."""
        if self.expert.group is None:
            return self._run_own(rows, counts)
        each = [1] * self.expert.size
        arriving = exchange(counts, each, each, self.expert.group)  # [P, n], rows that come from each rank
        sent, received = torch.stack((counts.sum(1), arriving.sum(1))).tolist()
        result = self._run_own(exchange(rows, sent, received, self.expert.group), arriving)
        return exchange(result, received, sent, self.expert.group)

    def _run_own(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Apply this rank's n experts to rows that lie by source rank first and expert second, `counts` [P, n]."""
        weights = local_part(self.gate_up_proj), local_part(self.down_proj)
        ends = counts.sum(0).cumsum(0).to(torch.int32)
        if len(counts) == 1:
            return apply_experts(rows, ends, *weights)
        expert = torch.arange(counts.shape[1], device=rows.device).repeat(len(counts))
        order = torch.repeat_interleave(expert, counts.flatten()).argsort(stable=True)  # sources stay in order
        place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=rows.device))
        return gather_rows(apply_experts(gather_rows(rows, order, place), ends, *weights), place, order)
