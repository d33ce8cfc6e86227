"""The ranks of a run and what each of them is in every dimension of the parallel layout."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from glmcore.errors import ConfigError
from glmcore.model.parallel.config import ParallelConfig

DIMENSIONS = ("pipeline", "data", "context", "tensor")
"""Outermost first: the ranks of one tensor group are neighbours."""


@dataclass(frozen=True)
class Axis:
    """This rank's place in one dimension."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    """None where `size` is 1: there is nobody to speak with."""


class Ranks:
    """The mesh of a run's processes; in a process on its own every dimension has size 1 and nothing is initialised.

    Args:
        config: Sizes of the dimensions.
        device_type: `cpu` or `cuda`.

    Raises:
        ConfigError: The processes that torchrun has started are not `config.num_ranks`.
    """

    def __init__(self, config: ParallelConfig, device_type: str = "cpu") -> None:
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != config.num_ranks:
            raise ConfigError(
                f"parallel needs {config.num_ranks} processes (pipeline={config.pipeline} x data={config.data} x "
                f"context={config.context} x tensor={config.tensor}), {started} run: start them with "
                f"torchrun --nproc-per-node {config.num_ranks} -m glmcore ..."
            )
        self.config = config
        self.rank = int(os.environ.get("RANK", "0"))
        self.mesh: DeviceMesh | None = None
        if started > 1:
            sizes = tuple(getattr(config, name) for name in DIMENSIONS)
            self.mesh = init_device_mesh(device_type, sizes, mesh_dim_names=DIMENSIONS)

    def axis(self, name: str) -> Axis:
        """This rank's place in dimension `name` of `DIMENSIONS`."""
        if self.mesh is None or getattr(self.config, name) == 1:
            return Axis()
        part = self.mesh[name]
        return Axis(part.get_local_rank(), part.size(), part.get_group())

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes records and speaks to people."""
        return self.rank == 0

    def sum_over_batch(self, values: Tensor) -> Tensor:
        """Add up `values` over all ranks that hold tokens of the step, those of data and context, in place."""
        for name in ("data", "context"):
            group = self.axis(name).group
            if group is not None:
                dist.all_reduce(values, group=group)
        return values

    def sum_over_pipeline(self, values: Tensor) -> Tensor:
        """Add up `values` over the stages of a pipeline, in place."""
        group = self.axis("pipeline").group
        if group is not None:
            dist.all_reduce(values, group=group)
        return values

    def sum(self, number: float) -> float:
        """`sum_over_batch` of one number."""
        return float(self.sum_over_batch(torch.tensor(number, dtype=torch.float64)))
