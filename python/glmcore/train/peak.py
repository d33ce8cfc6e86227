"""How fast a device multiplies matrices, and what share of it a training step uses."""

import time

import numpy as np
import torch

from glmcore.model.flops import TrainingFlops
from glmcore.packing import PackedBatch
from glmcore.train.loss import IGNORED

SIZES = {"cpu": 1024, "cuda": 8192}
"""Rows of the square matrices: large enough that longer ones are no faster."""
SECONDS = 0.2
"""Time that is spent on measuring, at least."""


def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product on a device, the best of several.

    On the CPU with the threads that PyTorch has. On a GPU the products run one behind the other, so that launching
    them takes no time.
    """
    size = SIZES.get(device.type, SIZES["cuda"])
    a = torch.full((size, size), 0.5, device=device, dtype=dtype)
    out = a @ a
    best, spent = float("inf"), 0.0
    repeat = 1 if device.type == "cpu" else 8
    while spent < SECONDS:
        _wait(device)
        started = time.perf_counter()
        for _ in range(repeat):
            torch.mm(a, a, out=out)
        _wait(device)
        seconds = time.perf_counter() - started
        best, spent = min(best, seconds / repeat), spent + seconds
    return 2.0 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def batch_flops(flops: TrainingFlops, batch: PackedBatch) -> float:
    """Operations of forward and backward pass of a batch that its documents need; padding is not counted."""
    lengths = np.diff(batch.cu_seqlens).astype(np.float64)
    starts = batch.cu_seqlens[:-1][lengths > 0]
    is_real = np.logical_or.reduceat((batch.labels != IGNORED) | (batch.loss_mask != 0), starts)
    real = lengths[lengths > 0][is_real]
    return float(flops.linear * real.sum() + flops.quadratic * np.square(real).sum())
