"""How long collectives take between the ranks of a dimension."""

from dataclasses import dataclass

from glmcore.model.parallel.config import ParallelConfig
from glmcore.plan.hardware import GPUS_PER_NODE, Assumptions, Gpu


@dataclass(frozen=True)
class Link:
    """A group of GPUs that speak with each other."""

    size: int
    neighbours: int
    """How many of them share a node."""
    nvlink: float
    """Bytes a second that one GPU sends to its neighbours."""
    network: float
    """Bytes a second that one GPU sends to other nodes."""

    def gather(self, num_bytes: float) -> float:
        """Seconds of an all-gather after which every rank holds `num_bytes`, or of the reduce-scatter the other way.

        What comes from other nodes comes once to each node, over the adapters of all neighbours at a time.
        """
        rate = self.nvlink
        if self.size > self.neighbours:
            rate = min(self.nvlink, self.network * self.neighbours)
        return num_bytes * (self.size - 1) / self.size / rate

    def all_reduce(self, num_bytes: float) -> float:
        """Seconds of an all-reduce of `num_bytes` on every rank: a reduce-scatter and an all-gather."""
        return 2 * self.gather(num_bytes)

    def all_to_all(self, num_bytes: float) -> float:
        """Seconds in which every rank sends `num_bytes`, evenly to all, itself among them; both ways at once."""
        near = num_bytes * (self.neighbours - 1) / self.size / self.nvlink
        far = num_bytes * (self.size - self.neighbours) / self.size / self.network
        return max(near, far)

    def send(self, num_bytes: float) -> float:
        """Seconds of a message to the next rank."""
        return num_bytes / (self.nvlink if self.size <= self.neighbours else self.network)


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
        """Groups by how many of their ranks share a node, which follows from the order of the dimensions."""

        def link(size: int, stride: int) -> Link:
            neighbours = max(1, min(size, GPUS_PER_NODE // stride))
            return Link(
                size, neighbours, gpu.nvlink_bandwidth * assumptions.link, gpu.network_bandwidth * assumptions.link
            )

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
