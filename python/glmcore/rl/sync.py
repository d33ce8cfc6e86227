"""The copy of the policy that samples: block-wise FP8, made anew after every update."""

from collections.abc import Iterator

import torch
from torch import Tensor

from glmcore.fp8 import dequantize_blocks, quantize_blocks
from glmcore.fp8.layout import is_quantized
from glmcore.model.glm import Glm
from glmcore.model.weights import FP8_BLOCK, hf_views


@torch.no_grad()
def fp8_weights(model: Glm) -> Iterator[tuple[str, Tensor]]:
    """All tensors of `Glm.state_dict` with the values that a block-FP8 checkpoint of `model` holds.

    Weights go to bfloat16 first, then, where the published FP8 layout quantises them, through e4m3 blocks; the values
    come back in the model's own dtype, ready for `Engine.update_weights`. A stack of experts is quantised matrix by
    matrix, so every block is the one that the exported checkpoint has.
    """
    for name, tensor in model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            yield name, tensor
            continue
        rounded = tensor.to(torch.bfloat16).clone()
        for hf_name, view in hf_views({name: rounded}).items():
            if is_quantized(hf_name):
                q, scale = quantize_blocks(view.contiguous(), block=FP8_BLOCK)
                view.copy_(dequantize_blocks(q, scale, block=FP8_BLOCK, dtype=torch.bfloat16))
        yield name, rounded.to(tensor.dtype)
