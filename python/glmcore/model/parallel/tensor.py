"""Tensor parallelism: ranks share out the heads and widths of every layer, and the vocabulary.

A rank has some heads (rows of the query, key and value projections, columns of the output projection) and some of the
width of a dense or shared feed-forward layer (rows of gate and up, columns of down) and sees all tokens. What the ranks
get is summed up after attention and after the feed-forward layer, and so are the gradients in the backward pass. Routed
experts are shared out whole, see `glmcore.model.parallel.expert`. Router, norms and residual stream are the same on all
ranks. Source: Megatron-LM (arXiv:1909.08053), section 3.
"""

from dataclasses import replace
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

from glmcore.errors import ConfigError
from glmcore.model.attention import Attention
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.moe import MixtureOfExperts, Mlp, Routing
from glmcore.model.norm import RMSNorm, rms_norm
from glmcore.model.parallel.collectives import enter, leave, share_gradient
from glmcore.model.parallel.placement import local_part, split
from glmcore.model.parallel.ranks import Ranks


def check_tensor_split(config: GlmConfig, num_ranks: int) -> None:
    """Make sure that `num_ranks` can share out a model.

    Raises:
        ConfigError: They do not divide it.
    """
    shared = config.moe_intermediate_size * config.n_shared_experts
    for name, size in (
        ("num_attention_heads", config.num_attention_heads),
        ("num_key_value_heads", config.num_key_value_heads),
        ("intermediate_size", config.intermediate_size),
        ("moe_intermediate_size * n_shared_experts", shared),
        ("vocab_size", config.vocab_size),
    ):
        if size % num_ranks:
            raise ConfigError(f"parallel.tensor={num_ranks} must divide model.{name}={size}")


def split_tensors(model: Glm, ranks: Ranks) -> None:
    """Give this rank its part of every layer but the routed experts, and make the layers work together."""
    mesh = ranks.mesh("tensor")
    group = mesh.get_group()
    for module in list(model.modules()):
        if isinstance(module, Attention):
            _split_attention(module, mesh)
            _surround(module, group)
        elif isinstance(module, MixtureOfExperts):
            _split_mlp(module.shared_experts, mesh)
            _split_mixture(module, group)
    for layer in model.model.layers:
        if isinstance(layer.mlp, Mlp):
            _split_mlp(layer.mlp, mesh)
            _surround(layer.mlp, group)
    if model.has_embedding:
        weight = split(model.model.embed_tokens.weight, mesh, Shard(0))
        model.model.add_module("embed_tokens", SplitEmbedding(weight, group))
    if model.has_head:
        tied = model.config.tie_word_embeddings
        model.lm_head.weight = model.model.embed_tokens.weight if tied else split(model.lm_head.weight, mesh, Shard(0))


class SplitLinear(nn.Module):
    """This rank's rows or columns of a linear layer."""

    bias: nn.Parameter | None

    def __init__(self, whole: nn.Linear, mesh: DeviceMesh, placement: Shard) -> None:
        super().__init__()
        self.weight = split(whole.weight, mesh, placement)
        self.register_parameter("bias", None if whole.bias is None else split(whole.bias, mesh, placement))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, local_part(self.weight), None if self.bias is None else local_part(self.bias))


class HeadNorm(RMSNorm):
    """Norm of some of the heads, which all have one weight."""

    def __init__(self, whole: RMSNorm, group: dist.ProcessGroup) -> None:
        nn.Module.__init__(self)
        self.weight = whole.weight
        self.eps = whole.eps
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, enter(self.weight, self.group), self.eps)


class SplitEmbedding(nn.Module):
    """This rank's rows of the embedding; tokens of other ranks' rows come from there."""

    def __init__(self, weight: nn.Parameter, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight = weight
        self.group = group

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings [T, D] of `input_ids` [T]."""
        weight = local_part(self.weight)
        place = input_ids - dist.get_rank(self.group) * len(weight)
        is_here = (place >= 0) & (place < len(weight))
        rows = F.embedding(place.where(is_here, 0), weight)
        return leave(rows.masked_fill(~is_here[:, None], 0.0), self.group)


def _split_attention(attention: Attention, mesh: DeviceMesh) -> None:
    for name, placement in (("q_proj", Shard(0)), ("k_proj", Shard(0)), ("v_proj", Shard(0)), ("o_proj", Shard(1))):
        attention.add_module(name, SplitLinear(getattr(attention, name), mesh, placement))
    attention.num_heads //= mesh.size()
    attention.num_kv_heads //= mesh.size()
    if attention.use_qk_norm:
        attention.q_norm = HeadNorm(attention.q_norm, mesh.get_group())
        attention.k_norm = HeadNorm(attention.k_norm, mesh.get_group())


def _split_mlp(mlp: Mlp, mesh: DeviceMesh) -> None:
    for name, placement in (("gate_proj", Shard(0)), ("up_proj", Shard(0)), ("down_proj", Shard(1))):
        mlp.add_module(name, SplitLinear(getattr(mlp, name), mesh, placement))


def _surround(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Let the first argument of `module` enter the work that is shared out, and its result leave it."""
    module.register_forward_pre_hook(lambda _, args: (enter(args[0], group), *args[1:]))
    module.register_forward_hook(lambda _module, _args, y: leave(y, group))  # pyright: ignore[reportArgumentType]


def _split_mixture(mixture: MixtureOfExperts, group: dist.ProcessGroup) -> None:
    """Let tokens enter, and leave, with the routing in between done by all ranks alike.

    What the mixing weights get from the experts of each rank is summed up before it goes into the router, so all
    ranks have the router's whole gradient; of what goes on to the tokens each hands in its share.
    """
    num_ranks = dist.get_world_size(group)

    def share(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (share_gradient(args[0], num_ranks), *args[1:])

    def sum_weights(_module: nn.Module, _args: Any, routing: Routing) -> Routing:
        return replace(routing, weight=enter(routing.weight, group))

    def sum_up(_module: nn.Module, _args: Any, result: tuple[Tensor, Routing]) -> tuple[Tensor, Routing]:
        return leave(result[0], group), result[1]

    mixture.gate.register_forward_pre_hook(share)
    mixture.gate.register_forward_hook(sum_weights)
    mixture.register_forward_pre_hook(lambda _, args: (enter(args[0], group), *args[1:]))
    mixture.register_forward_hook(sum_up)
