"""The ranks of a run and what each of them is in every dimension of the parallel layout."""

from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from glmcore.errors import ConfigError
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.processes import local_device, num_processes, process_rank, start_processes

VIEWS = (
    ("pipeline", "data", "context", "tensor"),
    ("pipeline", "batch", "tensor"),
    ("pipeline", "replicas", "shard", "tensor"),
    ("pipeline", "replicas", "expert_shard", "expert", "tensor"),
)
"""The same ranks cut in four ways, outermost first: the ranks of a tensor group are neighbours, and so are those of an
expert group but for the tensor ranks between them.

By the rows and tokens that a rank works on; by whether it works on other tokens at all; by the weights that it holds;
and by the routed experts that it holds."""
PATIENCE = timedelta(days=30)
"""How long ranks wait for the first one, which prepares the data meanwhile."""

_Value = TypeVar("_Value")


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
        started = num_processes()
        if started != config.num_ranks:
            raise ConfigError(
                f"parallel needs {config.num_ranks} processes (pipeline={config.pipeline} x data={config.data} x "
                f"context={config.context} x tensor={config.tensor}), {started} run: start them with "
                f"torchrun --nproc-per-node {config.num_ranks} -m glmcore ..."
            )
        self.config = config
        self.rank = process_rank()
        self.device_type = device_type
        self.device = local_device(device_type)
        self._views: tuple[DeviceMesh, ...] = ()
        self._waiting: dist.ProcessGroup | None = None
        if started > 1:
            start_processes(device_type)
            self._views = tuple(
                init_device_mesh(device_type, tuple(config.size(name) for name in names), mesh_dim_names=names)
                for names in VIEWS
            )
            self._waiting = dist.new_group(backend="gloo", timeout=PATIENCE)

    def mesh(self, *names: str) -> DeviceMesh:
        """The mesh of this rank in some dimensions of one of `VIEWS`, in the order there.

        Raises:
            ConfigError: The process is on its own.
        """
        for view in self._views:
            if view.mesh_dim_names and set(names) <= set(view.mesh_dim_names):
                return view[names]
        raise ConfigError(f"a process on its own has no mesh of {', '.join(names)}")

    def axis(self, name: str) -> Axis:
        """This rank's place in a dimension of `VIEWS`."""
        if self.config.size(name) == 1:
            return Axis()
        part = self.mesh(name)
        return Axis(part.get_local_rank(), part.size(), part.get_group())

    @property
    def is_alone(self) -> bool:
        """True in a process on its own."""
        return not self._views

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes records and speaks to people."""
        return self.rank == 0

    @cached_property
    def _batch(self) -> dist.ProcessGroup | None:
        return self.axis("batch").group

    def sum_over_batch(self, values: Tensor) -> Tensor:
        """Add up `values` over all ranks that hold tokens of the step, those of data and context, in place."""
        if self._batch is not None:
            dist.all_reduce(values, group=self._batch)
        return values

    def sum(self, number: float) -> float:
        """`sum_over_batch` of one number."""
        return float(self.sum_over_batch(torch.tensor(number, dtype=torch.float64)))

    def from_first(self, value: _Value | None) -> _Value:
        """What the first rank has given, on every rank; the others wait for it as long as it takes."""
        values: list[Any] = [value]
        if self._waiting is not None:
            dist.broadcast_object_list(values, src=0, group=self._waiting)
        return values[0]
