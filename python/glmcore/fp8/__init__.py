"""Block-wise FP8: quantise and dequantise matrices and checkpoints. torch is not needed for numpy arrays."""

from glmcore.fp8.checkpoint import dequantize_checkpoint, quantize_checkpoint, verify_checkpoint
from glmcore.fp8.quantize import dequantize_blocks, quantize_blocks, quantize_groups

__all__ = [
    "dequantize_blocks",
    "dequantize_checkpoint",
    "quantize_blocks",
    "quantize_checkpoint",
    "quantize_groups",
    "verify_checkpoint",
]
