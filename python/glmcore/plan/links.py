"""How long collectives take between the ranks of a dimension."""

from dataclasses import dataclass

from glmcore.model.parallel.config import ParallelConfig
from glmcore.plan.hardware import GPUS_PER_NODE, Assumptions, Gpu


@dataclass(frozen=True)
class Link:
    """A group of GPUs that speak with each other at one rate."""

    size: int
    bandwidth: float
    """Bytes a second that one GPU sends."""

    def gather(self, num_bytes: float) -> float:
        """Seconds of an all-gather after which every rank holds `num_bytes`, or of the reduce-scatter the other way."""
        return num_bytes * (self.size - 1) / self.size / self.bandwidth

    def all_reduce(self, num_bytes: float) -> float:
        """Seconds of an all-reduce of `num_bytes` on every rank: a reduce-scatter and an all-gather."""
        return 2 * self.gather(num_bytes)

    def all_to_all(self, num_bytes: float) -> float:
        """Seconds in which every rank sends `num_bytes`, evenly to all, itself among them."""
        return self.gather(num_bytes)


@dataclass(frozen=True)
class Links:
    """The groups of a layout. Ranks of a dimension lie as `glmcore.model.parallel.ranks.DIMENSIONS` has them."""

    tensor: Link
    context: Link
    expert: Link
    shard: Link
    """Ranks that a weight is sharded over."""
    expert_shard: Link
    """Ranks that an expert's weights are sharded over."""
    replicas: Link
    pipeline: Link

    @classmethod
    def of(cls, layout: ParallelConfig, gpu: Gpu, assumptions: Assumptions) -> "Links":
        """Groups within a node use NVLink, others the network.

        Of a group that spans nodes the slower way counts: `g` ranks of it in a node share out what leaves the node, so
        that it moves at `g` times the rate of one adapter, or NVLink's if that is less.
        """

        def link(size: int, stride: int) -> Link:
            nvlink, network = gpu.nvlink_bandwidth * assumptions.link, gpu.network_bandwidth * assumptions.link
            neighbours = max(1, min(size, GPUS_PER_NODE // stride))
            rate = nvlink if size <= neighbours else min(nvlink, network * neighbours)
            return Link(size, rate)

        tensor, context, expert = layout.tensor, layout.context, layout.expert
        shard = layout.data // layout.replicas * context
        batch = layout.data * context
        return cls(
            tensor=link(tensor, 1),
            context=link(context, tensor),
            expert=link(expert, tensor),
            shard=link(shard, tensor),
            expert_shard=link(max(shard // expert, 1), tensor * expert),
            replicas=link(layout.replicas, tensor * shard),
            pipeline=link(layout.pipeline, tensor * batch),
        )
