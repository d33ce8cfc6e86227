"""Block-wise FP8: quantise and dequantise matrices and checkpoints, and publish weights to engines.

torch is not needed for numpy arrays; what works on torch tensors alone is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from glmcore.fp8.checkpoint import dequantize_checkpoint, quantize_checkpoint, verify_checkpoint
from glmcore.fp8.quantize import dequantize_blocks, quantize_blocks, quantize_groups

if TYPE_CHECKING:
    from glmcore.fp8.broadcast import WeightBroadcast
    from glmcore.fp8.bucket import Bucket, weights_checksum
    from glmcore.fp8.linear import Float8Experts, Float8Linear
    from glmcore.fp8.many import expert_stack, quantize_many
    from glmcore.fp8.publisher import Publication, WeightPublisher
    from glmcore.fp8.ray_actors import RayWeightReceiver, publish_to_actors
    from glmcore.fp8.receiver import WeightReceiver
    from glmcore.fp8.weight_directory import WeightDirectory, checkpoint_checksum

_HOME_OF = {
    "Bucket": "bucket",
    "Float8Experts": "linear",
    "Float8Linear": "linear",
    "Publication": "publisher",
    "RayWeightReceiver": "ray_actors",
    "WeightBroadcast": "broadcast",
    "WeightDirectory": "weight_directory",
    "WeightPublisher": "publisher",
    "WeightReceiver": "receiver",
    "checkpoint_checksum": "weight_directory",
    "expert_stack": "many",
    "publish_to_actors": "ray_actors",
    "quantize_many": "many",
    "weights_checksum": "bucket",
}

__all__ = [
    "Bucket",
    "Float8Experts",
    "Float8Linear",
    "Publication",
    "RayWeightReceiver",
    "WeightBroadcast",
    "WeightDirectory",
    "WeightPublisher",
    "WeightReceiver",
    "checkpoint_checksum",
    "dequantize_blocks",
    "dequantize_checkpoint",
    "expert_stack",
    "publish_to_actors",
    "quantize_blocks",
    "quantize_checkpoint",
    "quantize_groups",
    "quantize_many",
    "verify_checkpoint",
    "weights_checksum",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"glmcore.fp8.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'glmcore.fp8' has no attribute {name!r}")
