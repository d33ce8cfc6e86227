"""How the blocks of a model are run: what they keep for the backward pass, and whether they are compiled."""

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from glmcore.errors import ConfigError
from glmcore.model.config import Checkpointing

Function = TypeVar("Function", bound=Callable[..., Any])

_COSTLY = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::_grouped_mm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
    "glmcore::attend_within_documents",
    "glmcore::attend_over_ranks",
)
"""Operators whose results `selective` keeps."""


def run_block(mode: Checkpointing, block: Callable[..., Any], *args: Any) -> Any:
    """`block(*args)`, keeping for its backward pass what `mode` says. Gradients are the same to the bit."""
    if mode == "none" or not torch.is_grad_enabled():
        return block(*args)
    if mode == "full":
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)
    contexts = functools.partial(create_selective_checkpoint_contexts, _keep_costly)
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _keep_costly(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    costly = operator.name().split(".")[0] in _COSTLY
    return CheckpointPolicy.MUST_SAVE if costly else CheckpointPolicy.PREFER_RECOMPUTE


def compile_block(block: nn.Module, device: torch.device) -> None:
    """Compile a block in place, for any number of tokens; the first call takes seconds to minutes.

    Raises:
        ConfigError: On a CPU without a C++ compiler.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++", "c++"))):
        raise ConfigError(
            "compiling blocks for the CPU needs a C++ compiler: install g++, let CXX name another, or do not compile"
        )
    block.compile(dynamic=True)


def outside_graphs(function: Function) -> Function:
    """Decorator of a function that compiled blocks call as it is, because its steps depend on the batch's lengths."""
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]
