"""transformers' Glm4Moe with the weights of one of our models, for tests that compare the two."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_layers import MtpModel
from transformers.models.glm4_moe import modeling_glm4_moe

from glmcore.model.glm import Glm


def peer_config(model: Glm, **changes: object) -> transformers.Glm4MoeConfig:
    """The peer's configuration: of its MoE the plain loop, which runs in every type; no token without a gradient."""
    fields = {**model.config.to_hf(), "pad_token_id": None, **changes}
    config = transformers.Glm4MoeConfig(**fields)
    config._experts_implementation = "eager"
    return config


def peer_of(model: Glm) -> transformers.Glm4MoeForCausalLM:
    """The peer with copies of all weights, in their types, but those of the MTP layer."""
    peer = transformers.Glm4MoeForCausalLM(peer_config(model)).to(model.lm_head.weight.dtype)
    take_over(peer, {name: tensor for name, tensor in model.state_dict().items() if not _is_mtp(name, model)})
    # `to` has narrowed the frequencies of the rotary embedding with the weights, which `from_pretrained` does not.
    peer.model.rotary_emb = modeling_glm4_moe.Glm4MoeRotaryEmbedding(peer.config)
    return peer


def peer_mtp_of(model: Glm, peer: transformers.Glm4MoeForCausalLM) -> MtpModel:
    """The peer's MTP model on top of `peer`, whose embedding, head and rotary embedding it shares."""
    mtp = MtpModel(peer, 1)
    mtp.layers.to(model.lm_head.weight.dtype)
    take_over(mtp.layers, {mtp_name(name): value for name, value in mtp_tensors(model.state_dict(), model).items()})
    return mtp


def mtp_tensors(tensors: dict[str, Any], model: Glm) -> dict[str, Any]:
    """Those of the MTP layer, by their names in it."""
    prefix = f"model.layers.{model.config.num_hidden_layers}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if _is_mtp(name, model)}


def mtp_name(name: str) -> str:
    """The peer's name, in the list of its MTP layers, of a tensor of our MTP layer."""
    if name.startswith(("enorm", "hnorm", "eh_proj")):
        return f"0.{name}"
    return "0.post_norm.weight" if name.startswith("shared_head") else f"0.mtp_block.{name}"


def _is_mtp(name: str, model: Glm) -> bool:
    return name.startswith(f"model.layers.{model.config.num_hidden_layers}.")


@torch.no_grad()
def take_over(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a module of the peer these tensors, all that it has; correction biases stay as wide as they are."""
    for name, buffer in list(module.named_buffers()):
        if name.endswith("e_score_correction_bias"):
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, buffer.to(tensors[name].dtype))
    module.load_state_dict(tensors, strict=True)


class _WideTorch:
    """`torch` in which `float32` means float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def in_float64() -> Iterator[None]:
    """The peer's norms and router compute in float64.

    They cast to float32 whatever the model's type is, by the name `torch.float32`; ours cast to float32 or wider. So in
    this block that name means float64 in the peer's module, and nothing else of it is changed. The angles of the rotary
    embedding are cast by another name, `torch.float`, and stay float32, as ours do; that they are the same to the bit is
    a test of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_glm4_moe, "torch", _WideTorch())
        yield
