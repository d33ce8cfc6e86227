"""Section of a recipe that says how a model is spread over ranks."""

from pydantic import PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config


class ParallelConfig(Config):
    """How a model is spread over the ranks of a torchrun: `pipeline * data * context * tensor` of them.

    A run may be resumed with other values.
    """

    data: PositiveInt = 1
    """Ranks that take different rows; weights, gradients and optimiser state are sharded over them (FSDP2)."""
    replicas: PositiveInt = 1
    """Groups of data ranks that hold the whole model each (hybrid sharding, HSDP); divides `data`."""
    context: PositiveInt = 1
    """Ranks that share out the tokens of every row."""
    tensor: PositiveInt = 1
    """Ranks that share out the heads and the feed-forward width of every layer."""
    expert: PositiveInt = 1
    """Of the data and context ranks, those that share out the routed experts; divides `data / replicas * context`."""
    pipeline: PositiveInt = 1
    """Ranks that share out the layers."""

    @model_validator(mode="after")
    def _parts_divide(self) -> Self:
        if self.data % self.replicas:
            raise ValueError(f"replicas={self.replicas} must divide data={self.data}")
        if self.size("shard") % self.expert:
            raise ValueError(
                f"expert={self.expert} must divide data / replicas * context = {self.data} / {self.replicas} * "
                f"{self.context} = {self.size('shard')}"
            )
        return self

    @property
    def num_ranks(self) -> int:
        """Processes that the run needs."""
        return self.pipeline * self.data * self.context * self.tensor

    def size(self, name: str) -> int:
        """Ranks in a dimension: a field, or one that follows from them.

        `batch` are the ranks that hold different tokens, `shard` those that share out the weights of a replica, and
        `expert_shard` those that share out the weights of the experts of one `expert` rank.
        """
        if name == "batch":
            return self.data * self.context
        if name == "shard":
            return self.data // self.replicas * self.context
        if name == "expert_shard":
            return self.data // self.replicas * self.context // self.expert
        return getattr(self, name)
