"""A model whose large weights are held in FP8, for sampling."""

from pathlib import Path

import torch
from torch import Tensor, nn

from glmcore.errors import CheckpointError, Fp8Error
from glmcore.fp8.held import HeldWeight
from glmcore.fp8.layout import is_quantized, published_views
from glmcore.fp8.linear import Float8Experts, Float8Linear
from glmcore.model.checkpoint import Checkpoint
from glmcore.model.glm import Glm
from glmcore.model.moe import Experts
from glmcore.model.weights import FP8_BLOCK


@torch.no_grad()
def hold_in_fp8(model: Glm) -> Glm:
    """Quantise, in place and layer by layer, what published FP8 checkpoints have quantised; gives the model.

    It then has no gradient for these weights, and cannot be saved.

    Raises:
        Fp8Error: A weight holds NaN or infinity.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and is_quantized(f"{name}.weight"):
            model.set_submodule(name, Float8Linear.from_linear(module))
        elif isinstance(module, Experts):
            model.set_submodule(name, Float8Experts.from_stacks(module.gate_up_proj, module.down_proj))
    return model


def weights_to_fill(model: Glm) -> dict[str, Tensor | HeldWeight]:
    """All that an update or a checkpoint replaces in a model, held in FP8 or not, under the published names."""
    targets: dict[str, Tensor | HeldWeight] = {}
    covered: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, Float8Linear):
            targets[f"{name}.weight"] = module.held
            covered |= {f"{name}.weight", f"{name}.weight_scale_inv"}
        elif isinstance(module, Float8Experts):
            targets |= {f"{name}.{matrix}.weight": held for matrix, held in module.held.items()}
            covered |= {f"{name}.{buffer}" for buffer, _ in module.named_buffers()}
    for name, tensor in model.state_dict().items():
        if name not in covered:
            targets |= dict(published_views(name, tensor))
    return targets


@torch.no_grad()
def copy_codes(model: Glm, directory: Path) -> bool:
    """Hold the very codes and scales of an FP8 checkpoint, where it has blocks of 128x128 as the model; else False.

    `model` is the checkpoint's, after `hold_in_fp8`.

    Raises:
        CheckpointError: A weight of the model is missing or not quantised.
    """
    with Checkpoint(directory) as source:
        if source.quantization is None or source.quantization.block != FP8_BLOCK:
            return False
        for name, target in weights_to_fill(model).items():
            if isinstance(target, HeldWeight):
                try:
                    target.copy_rows(0, *source.codes(name))
                except Fp8Error as error:
                    raise CheckpointError(f"{directory}: tensor {name!r}: {error}") from None
    return True
