"""Ways to lay a model out over ranks, for tests of what must not depend on the layout."""

import torch
from conftest import TINY
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.parallel.placement import local_box


def tiny_model(**fields: object) -> Glm:
    return Glm(GlmConfig(**{**TINY, **fields})).init_weights(0)


def _replace(model: nn.Module, name: str, tensor: Tensor) -> None:
    module_name, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module_name), leaf, nn.Parameter(tensor))


def _tensor_parallel(model: Glm, mesh) -> None:
    for name, parameter in list(model.named_parameters()):
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
            _replace(model, name, distribute_tensor(parameter.detach(), mesh, [Shard(0)]))
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            _replace(model, name, distribute_tensor(parameter.detach(), mesh, [Shard(1)]))


def _experts(model: Glm, mesh, placements: list) -> None:
    for name, parameter in list(model.named_parameters()):
        if "mlp.experts" in name:
            _replace(model, name, distribute_tensor(parameter.detach(), mesh, placements))


def lay_out(layout: str, num_ranks: int, rank: int, **fields: object) -> nn.Module:
    """A tiny model spread over all ranks; the same weights in every layout.

    `plain` holds everything everywhere, `fsdp` shards dimension 0 of everything, `hsdp` in two replicas, `tensor` cuts
    projections in two and shards what comes of it, `expert` cuts experts in two and shards their inner dimension,
    `pipeline` gives half of the layers to half of the ranks, sharded, and the embedding to both.
    """
    model = tiny_model(**fields)
    half = num_ranks // 2
    if layout == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (num_ranks,)))
    elif layout == "hsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (2, half), mesh_dim_names=("replicate", "shard")))
    elif layout == "tensor":
        mesh = init_device_mesh("cpu", (half, 2), mesh_dim_names=("data", "tensor"))
        _tensor_parallel(model, mesh["tensor"])
        fully_shard(model, mesh=mesh["data"])
    elif layout == "expert":
        mesh = init_device_mesh("cpu", (half, 2), mesh_dim_names=("inner", "expert"))
        _experts(model, mesh, [Shard(1), Shard(0)])
        flat = init_device_mesh("cpu", (num_ranks,))
        for name, parameter in list(model.named_parameters()):
            if "mlp.experts" not in name:
                placement = Shard(0) if parameter.dim() > 1 else Replicate()
                _replace(model, name, distribute_tensor(parameter.detach(), flat, [placement]))
    elif layout == "pipeline":
        mesh = init_device_mesh("cpu", (2, half), mesh_dim_names=("pipeline", "data"))
        first = [0, 1] if rank < half else [2, 3]
        for index in range(4):
            if index not in first:
                model.model.layers[index] = nn.Identity()
        fully_shard(model, mesh=mesh["data"])
    elif layout != "plain":
        raise ValueError(layout)
    return model


def local_of(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this rank would hold, laid out as `like`."""
    box = local_box(like)
    part = tensor[box.slices_from((0,) * len(box.start))].clone()
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def random_gradients(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A gradient for each parameter, dependent on its name alone."""
    gradients = {}
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(seed * 1000 + sum(name.encode()) % 997)
        gradients[name] = torch.randn(parameter.shape, generator=generator)
    return gradients
