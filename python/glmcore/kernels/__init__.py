"""CUDA kernels: compiled for the card that is there when they are used first, launched on torch's current stream."""

from glmcore.kernels.compile import is_available

__all__ = ["is_available"]
